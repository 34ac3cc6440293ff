"""File formats of topologies; TOML is the one that moesim writes."""
