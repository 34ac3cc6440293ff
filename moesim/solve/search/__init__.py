"""Local search on counts: the state of a layer, seconds of a count, annealing."""
