"""`export`: from one master to a validated package."""
