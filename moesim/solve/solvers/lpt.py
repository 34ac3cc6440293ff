"""Longest processing time first: the classic greedy rule for equal loads."""

from __future__ import annotations

from moesim.base.arrays import Array
from moesim.solve.packing import lightest_first
from moesim.solve.problem import Problem


def lpt(problem: Problem) -> Array:
    """Return greedy copies, heaviest first to the rank that then finishes first and does not hold the expert."""
    return lightest_first(problem.loads, problem.ranks, problem.slots_per_rank, problem.cluster.speed)
