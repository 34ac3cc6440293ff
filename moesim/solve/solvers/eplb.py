"""EPLB as a solver: the published answer, with second copies on a rank repaired."""

from __future__ import annotations

from moesim.base.arrays import Array
from moesim.base.units import count
from moesim.solve.eplb import rebalance
from moesim.solve.problem import Problem
from moesim.solve.repair import repair_duplicates


def eplb(problem: Problem) -> Array:
    """Return EPLB's global placement (its form for decode and large groups)."""
    return _placed(problem, hierarchical=False)


def eplb_hierarchical(problem: Problem) -> Array:
    """Return EPLB's hierarchical placement: every expert group stays on one node.

    Raises
    ------
    InputError
        If the nodes do not divide the model's expert groups, or differ in size: EPLB itself would then silently
        answer with its global form.
    """
    return _placed(problem, hierarchical=True)


def _placed(problem: Problem, hierarchical: bool) -> Array:
    flat, _ = rebalance(
        problem.loads,
        problem.ranks * problem.slots_per_rank,
        groups=problem.spec.groups,
        nodes=problem.cluster.nodes,
        ranks=problem.ranks,
        hierarchical=hierarchical,
    )
    experts = flat.reshape(problem.layers, problem.ranks, problem.slots_per_rank)
    experts, repaired = repair_duplicates(experts, problem.loads, problem.cluster.node if hierarchical else None)
    if repaired:
        problem.note(
            f"EPLB put a second copy of an expert on one rank {count(repaired, 'time')}; each was swapped with the "
            "nearest load of another rank (engines waste such a slot)"
        )
    return experts
