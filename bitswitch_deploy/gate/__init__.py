"""Has accuracy regressed: outcomes of single samples, a baseline of them, and the statistics that compare the two."""
