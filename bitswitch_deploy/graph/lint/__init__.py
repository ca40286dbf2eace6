"""Linter for any Q/DQ graph: what an engine refuses, misreads or leaves in float, each with the node and the mend."""
