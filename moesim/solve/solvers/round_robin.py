"""Experts dealt out to ranks like cards."""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.solve.problem import Problem
from moesim.solve.repair import repair_duplicates


def round_robin(problem: Problem) -> Array:
    """Return experts dealt to ranks in turn; every further deal of the same experts starts one rank later."""
    ranks, slots, total = problem.ranks, problem.slots_per_rank, problem.experts
    used = min(slots, total)
    card = np.arange(ranks * used)
    # without the shift, a number of ranks that divides E would deal a rank the same expert again
    expert = (card + card // np.lcm(ranks, total)) % total
    experts = np.full((problem.layers, ranks, slots), -1, np.int32)
    experts[:, :, :used] = expert.reshape(used, ranks).T
    experts, _ = repair_duplicates(experts, np.ones((problem.layers, total)))
    return experts
