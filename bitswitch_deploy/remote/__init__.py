"""Another machine, over the system's OpenSSH: run commands there, keep a package there in step with the one here."""
