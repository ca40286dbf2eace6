"""From the canonical graph to the graph that one target's runtime accepts and executes best."""
