"""What `export` writes: one folder that appears whole or not at all, with a manifest that lists every file."""
