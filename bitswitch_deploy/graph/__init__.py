"""Skeleton + master + widths -> canonical graph; passes that are true on every target."""
