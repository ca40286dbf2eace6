"""Is it fast: latency of every width, layer by layer, and the state of the board while it was measured."""
