"""One memory budget for all layers: more copies in the layers where they pay (as CRAFT and omni-infer do)."""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import Infeasible, InputError
from moesim.base.units import count
from moesim.placement import EMPTY, Placement
from moesim.solve.packing import balance
from moesim.solve.problem import Problem


def share_slots(problem: Problem, budget: int) -> Array:
    """Return the slots of a rank in each layer, int64 [layers], that add up to the budget at most.

    Every layer is balanced by load with every number of slots from the fewest that hold all experts up to
    ``problem.slots_per_rank`` and costed on the fit traffic; among all ways to share the budget the one with the least
    time in all is taken, exactly (dynamic programming over layers). Where a further copy costs more than it gives
    (weight reads at small batch) the layer does without, and the budget is not used up.

    Raises
    ------
    Infeasible
        If the budget does not hold all experts of all layers.
    """
    counts, seconds = layer_seconds(problem)
    layers = problem.layers
    if budget < layers * counts[0]:
        raise Infeasible(
            f"slot budget: to hold {count(problem.experts, 'expert')} each of {count(layers, 'layer')} needs "
            f"{count(counts[0], 'slot')} a rank, {layers * counts[0]} in all, the budget is {budget}; give more"
        )
    budget = min(budget, int(layers * counts[-1]))  # more cannot be used
    best = np.zeros(budget + 1)
    choice = np.zeros((layers, budget + 1), np.int64)
    for layer in range(layers):
        after = np.full(budget + 1, np.inf)
        for index, each in enumerate(counts):
            with_these = best[: budget + 1 - each] + seconds[layer, index]
            better = with_these < after[each:]
            after[each:][better] = with_these[better]
            choice[layer, each:][better] = index
        best = after
    left = int(np.argmin(best))
    out = np.empty(layers, np.int64)
    for layer in range(layers - 1, -1, -1):
        out[layer] = counts[choice[layer, left]]
        left -= out[layer]
    return out


def layer_seconds(problem: Problem) -> tuple[list[int], Array]:
    """Return numbers of slots a rank, ascending, and the time of each layer with so many, float64 [layers, numbers]."""
    fewest, most = -(-problem.experts // problem.ranks), min(problem.slots_per_rank, problem.experts)
    if fewest > most:
        raise InputError(
            f"slot budget: {count(most, 'slot')} a rank cannot hold {count(problem.experts, 'expert')}; give more "
            "slots per rank"
        )
    counts = list(range(fewest, most + 1))
    seconds = np.empty((problem.layers, len(counts)))
    for index, each in enumerate(counts):
        held = balance(problem.loads, problem.ranks, each, problem.cluster.speed)
        found = problem.score(Placement(held, problem.experts))
        seconds[:, index] = problem.objective.layer_values(found)
    return counts, seconds


def widened(experts: Array, slots: int) -> Array:
    """Return a placement int [layers, ranks, few slots] with empty slots up to ``slots``."""
    return np.pad(experts, ((0, 0), (0, 0), (0, slots - experts.shape[2])), constant_values=EMPTY)
