"""A random placement: the floor that every idea must beat."""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.solve.problem import Problem
from moesim.solve.repair import repair_duplicates


def shuffled(problem: Problem) -> Array:
    """Return every expert once and random further copies, all shuffled over the slots; drawn by the problem's seed."""
    ranks, slots, total = problem.ranks, problem.slots_per_rank, problem.experts
    used = min(slots, total)
    rng = np.random.default_rng(problem.seed)
    experts = np.full((problem.layers, ranks, slots), -1, np.int32)
    for layer in experts:
        # whole shuffles one after the other: copies of an expert differ by one at most
        decks = [rng.permutation(total) for _ in range(-(-ranks * used // total))]
        layer[:, :used] = rng.permutation(np.concatenate(decks)[: ranks * used]).reshape(ranks, used)
    experts, _ = repair_duplicates(experts, np.ones((problem.layers, total)))
    return experts
