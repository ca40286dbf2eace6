"""`search`: which layer gets which width."""
