"""Contiguous blocks of expert ids, as engines lay experts out when told nothing."""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.solve.problem import Problem


def contiguous(problem: Problem) -> Array:
    """Return slot p holding expert p modulo E, rank by rank.

    This is how engines fill physical experts at start (SGLang's trivial location, vLLM's initial mapping), redundant
    slots included. A rank that has more slots than there are experts leaves the rest empty.
    """
    ranks, slots = problem.ranks, problem.slots_per_rank
    used = min(slots, problem.experts)
    experts = np.full((ranks, slots), -1, np.int32)
    experts[:, :used] = np.arange(ranks * used).reshape(ranks, used) % problem.experts
    return np.broadcast_to(experts, (problem.layers, ranks, slots)).copy()
