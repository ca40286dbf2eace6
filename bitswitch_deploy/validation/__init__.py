"""Is it right: data sets, metrics, and the comparison of each hop from the trained network to the engine."""
