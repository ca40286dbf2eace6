"""Which layer is it: how far each one is from what it should compute, and what the likely cause is."""
