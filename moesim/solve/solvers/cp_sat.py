"""CP-SAT as a solver: the balance of small layers with proof, a warm-started polish of larger ones."""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.solve.exact import smallest_largest_load
from moesim.solve.problem import Problem, takes
from moesim.solve.solvers.eplb import eplb_hierarchical


@takes(hierarchical=False)
def cp_sat(problem: Problem) -> Array:
    """Return the placement whose fullest rank has the least load, layer by layer; copies share equally.

    Every layer gets an equal part of the deadline. Notes say how many layers are proven optimal, and how far the
    others can be from it.

    Options
    -------
    hierarchical
        Keep every expert group on one node, as EPLB's hierarchical form does.
    """
    ranks, slots = problem.ranks, problem.slots_per_rank
    node = problem.cluster.node.tolist()
    groups = start = None
    if problem.options["hierarchical"]:
        if problem.spec.groups % problem.cluster.nodes:
            raise InputError(
                f"cp-sat: {problem.cluster.nodes} nodes do not divide {count(problem.spec.groups, 'expert group')}, "
                "so a group cannot stay on one node; plan without hierarchical"
            )
        silent = [*problem.notes]
        start = eplb_hierarchical(problem)
        problem.notes[:] = silent  # remarks on EPLB say nothing about this plan
        size = problem.experts // problem.spec.groups
        groups = [expert // size for expert in range(problem.experts)]
    experts = np.empty((problem.layers, ranks, slots), np.int32)
    proven, gaps = 0, []
    for layer, load in enumerate(problem.loads):
        found = smallest_largest_load(
            load,
            ranks,
            slots,
            groups=groups,
            node=node,
            start=None if start is None else start[layer],
            deadline_s=0.9 * problem.seconds_left() / (problem.layers - layer),
            jobs=problem.jobs,
            seed=problem.seed,
        )
        experts[layer] = found.experts
        proven += found.proven
        gaps.append(found.largest / found.bound - 1 if found.bound > 0 else 0.0)
    problem.note(f"cp-sat: balance by load proven optimal in {proven} of {count(problem.layers, 'layer')}")
    if proven < problem.layers:
        problem.note(
            f"cp-sat: elsewhere the fullest rank is at most {max(gaps):.2%} above the optimum; the clock cut the "
            "search, so another run may differ"
        )
    return experts
