"""Table families: how the rows of each file become simulated cases."""
