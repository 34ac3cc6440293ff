"""What is asked of a plan beside speed, and what came of it: slot budget, constraints, migration."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.cluster import Cluster
from moesim.placement import Placement
from moesim.placement.rounds import Schedule, keep_slots, schedule
from moesim.solve.budget import share_slots
from moesim.solve.conform import conform
from moesim.solve.memory import RESERVED_MEMORY, other_weights, slots_in_use
from moesim.solve.moving import break_even_s, price, staging_room
from moesim.solve.objective import Score
from moesim.solve.problem import Problem
from moesim.spec import ModelSpec

_SAVED: Final = 0.01
"""Part of the time of a layer that renumbering its ranks may cost."""


def with_budget(problem: Problem) -> Problem:
    """Return the problem with the slots of every layer that its budget gives, if it has one."""
    budget = problem.constraints.slot_budget
    if budget is None:
        return problem
    counts = share_slots(problem, budget)
    problem.note(
        f"slot budget: {counts.sum()} of {count(budget, 'slot')} a rank used, {counts.min()} to {counts.max()} in a "
        "layer; engines that hold as many slots in every layer cannot load this plan"
    )
    given = problem.constraints.rank_slots
    most = np.full(problem.ranks, problem.slots_per_rank) if given is None else np.array(given)
    return dataclasses.replace(problem, room=np.minimum(counts[:, None], most))


def respecting(placement: Placement, problem: Problem, solver: str) -> Placement:
    """Return a placement with the constraints respected, changed as little as that takes, and moving little.

    Like ranks are renumbered so that the fewest experts move, unless that costs time; with a horizon, layers whose
    move does not pay off in it stay as they are.

    Raises
    ------
    Infeasible
        If it is proven that no placement respects the constraints.
    InputError
        If none was found that does.
    """
    limits = problem.limits
    placement = renumbered(placement, problem)
    if limits.strict:
        experts, changed = conform(placement.experts, limits, problem.loads, jobs=problem.jobs)
        if changed:
            problem.note(
                f"{solver}: {changed} of {count(problem.layers, 'layer')} had to change to respect the constraints"
            )
        placement = Placement(experts, problem.experts)
    if np.isfinite(problem.horizon_s):
        placement = staying(placement, problem)
    if broken := limits.breaches(placement.experts):
        raise InputError(f"solver {solver!r}: the answer breaks a constraint: {broken[0]}; report it")
    return placement


def renumbered(placement: Placement, problem: Problem) -> Placement:
    """Return a placement with like ranks renumbered so that the fewest experts move, where that costs next to nothing.

    Renumbered ranks change whose tokens are near, and with them what a placement that was fitted to it is worth. No
    layer is renumbered that would be faster than what runs only as it is.
    """
    if problem.running is None or problem.limits.most is not None:
        return problem.relabelled(placement)
    ways = [
        problem.relabelled(placement), keep_slots(problem.running, placement), Placement(problem.start, problem.experts)
    ]  # fmt: skip
    fewest, fitted, stay = problem.worth([problem.score(one) for one in ways], ways)
    as_it_is = (fitted < fewest * (1 - _SAVED)) | ((fitted < stay) & (stay < fewest))
    return Placement(np.where(as_it_is[:, None, None], ways[1].experts, ways[0].experts), problem.experts)


def staying(placement: Placement, problem: Problem) -> Placement:
    """Return a placement whose layers are those that run wherever moving them does not pay off in the horizon."""
    if problem.running is None:
        raise InputError("solve: a horizon needs the placement that runs; give the previous placement")
    stay = Placement(problem.start, problem.experts)
    both = [placement, stay]
    scores = [problem.score(one) for one in both]
    here, there = problem.worth(scores, both)
    # equal is no reason to move
    moving = here < there * (1 - 1e-9)
    if left := int((~moving & (placement.experts != stay.experts).any(axis=(1, 2))).sum()):
        problem.note(
            f"left as it was: {left} of {count(problem.layers, 'layer')}, where a move does not pay off in "
            f"{problem.horizon_s:g} s"
        )
    return Placement(np.where(moving[:, None, None], placement.experts, stay.experts), problem.experts)


def steps_of_move(
    running: Array, planned: Placement, spec: ModelSpec, cluster: Cluster, layers: int | None = None
) -> Schedule:
    """Return the migration schedule, with as much staging as the memory of the ranks leaves.

    Parameters
    ----------
    layers
        MoE layers whose experts a rank holds. Default: those of the model; more where each stands for several.

    Raises
    ------
    Infeasible
        If a rank has no room to receive a single expert beside its slots.
    """
    steps = schedule(running, planned, cluster.node)
    if not len(steps):
        return steps
    room = staging_room(
        cluster, slots_in_use(running, planned.experts), layers or spec.moe_layers, spec.expert_bytes,
        other_weights(spec), RESERVED_MEMORY,
    )  # fmt: skip
    return steps if steps.staging <= room else schedule(running, planned, cluster.node, room)


def report(placement: Placement, scored: Score, problem: Problem) -> dict[str, Any]:
    """Return what was asked for and what came of it, plain data for ``Plan.terms``."""
    found: dict[str, Any] = {
        "objective": problem.objective.to_dict() | {"value_s": problem.objective.value(scored)},
        "constraints": problem.constraints.to_dict(),
        "windows": len(problem.batches),
        "worst_window_s": float(
            max(scored.step_s[scored.window == number].mean() for number in np.unique(scored.window))
        ),
    }
    limits = problem.limits
    if limits.hot.size:
        spread = limits.spread(placement.has)
        found["hot_spread"] = float(spread.mean())
    if problem.running is not None:
        steps = steps_of_move(problem.running, placement, problem.spec, problem.cluster)
        move = price(steps, problem.cluster, problem.spec.expert_bytes)
        found["migration"] = move.to_dict() | {
            "stay_step_s": problem.stay.mean_s,
            "step_s": scored.mean_s,
            "break_even_s": break_even_s(move.seconds, problem.stay.mean_s, scored.mean_s, scored.model_step_s),
            "horizon_s": problem.horizon_s if np.isfinite(problem.horizon_s) else None,
        }
        if not move.moves:
            problem.note("nothing moves: the running placement stays")
    return found
