"""`check`: whether accuracy has regressed since the baseline."""
