"""The state of the board while something was measured: power mode, clocks, temperatures, throttling, power."""
