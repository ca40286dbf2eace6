"""Joint multi-precision training in torch; nothing that a device needs imports it."""
