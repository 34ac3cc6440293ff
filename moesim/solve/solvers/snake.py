"""Snake dealing: there and back again over the ranks, heaviest copies first."""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.solve.packing import copies_by_weight, greedy_copies
from moesim.solve.problem import Problem
from moesim.solve.repair import repair_duplicates


def snake(problem: Problem) -> Array:
    """Return greedy copies sorted by load and dealt out boustrophedon, as SGLang's vectorised packing does."""
    ranks, slots = problem.ranks, problem.slots_per_rank
    item, _ = copies_by_weight(problem.loads, greedy_copies(problem.loads, ranks * slots, ranks))
    dealt = np.full((problem.layers, slots * ranks), -1, np.int32)
    dealt[:, : item.shape[1]] = item
    rows = dealt.reshape(problem.layers, slots, ranks)
    rows[:, 1::2] = rows[:, 1::2, ::-1].copy()
    experts, _ = repair_duplicates(rows.transpose(0, 2, 1), problem.loads)
    return experts
