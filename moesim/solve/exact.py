"""Proven optima of small layers with OR-Tools CP-SAT: the smallest largest rank load.

A layer is a matrix of copies. Loads are whole numbers (picks); an expert with n copies puts ``load / n`` on each
rank that holds it. To stay in whole numbers all loads are scaled by the least common multiple of the numbers of
copies that can occur, or, where that is too large, rounded down, so that the bound stays a bound.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.base.errors import Infeasible, InputError
from moesim.base.units import count
from moesim.solve.packing import balance, rank_loads
from moesim.solve.patterns import least_limit

_LARGEST: Final = 2**45
"""Largest scaled load: CP-SAT wants sums well inside 64 bits."""
_BUILT_PER_S: Final = 60_000
"""Variables of the assignment model that a slow core builds, hints and presolves in a second; larger models are not
begun, because neither building nor presolving can be stopped."""


@dataclass(frozen=True)
class Exact:
    """A placement of one layer with what is proven about it.

    Parameters
    ----------
    experts
        Expert of every slot, int32 [ranks, slots].
    largest
        Load of its fullest rank, in the unit of the loads.
    bound
        Load that the fullest rank of any placement has at least.
    proven
        Whether no placement is better (beyond the rounding of loads).
    """

    experts: NDArray[np.int32]
    largest: float
    bound: float
    proven: bool


def smallest_largest_load(
    load: ArrayLike,
    ranks: int,
    slots: int,
    *,
    groups: Sequence[int] | None = None,
    node: Sequence[int] | None = None,
    start: ArrayLike | None = None,
    deadline_s: float = 10.0,
    jobs: int = 1,
    seed: int = 0,
) -> Exact:
    """Return the placement of one layer whose fullest rank has the least load.

    Copies of an expert share its load equally; no rank holds an expert twice.

    Parameters
    ----------
    load
        Load of each expert, [experts].
    groups, node
        Group of each expert and node of each rank: with both, all copies of a group's experts stay on one node and
        every node holds equally many groups (EPLB's hierarchical constraint).
    start
        A placement [ranks, slots] to start from.

    Raises
    ------
    Infeasible
        If no placement satisfies the constraints.
    InputError
        If no placement was found before the deadline.
    """
    load = np.asarray(load, dtype=np.float64)
    total = len(load)
    if ranks * slots < total:
        raise Infeasible(
            f"slots: {count(ranks, 'rank')} of {count(slots, 'slot')} cannot hold {count(total, 'expert')}; add slots "
            "per rank"
        )
    most = min(ranks, ranks * slots - total + 1)
    weight, unit = _whole_shares(load, most)
    began = time.monotonic()
    if groups is None or node is None or len(set(node)) == 1:
        quick = balance(load[None], ranks, slots)[0] if start is None else np.asarray(start, np.int32)
        high = int(_rank_totals(quick, weight).max())
        low = max(-(-_least_total(weight) // ranks), int(weight[:, -1].max()))
        answer = least_limit(weight, ranks, slots, low, high, deadline_s=deadline_s, jobs=jobs, seed=seed)
        if answer is not None:
            bound, reached, sets = answer
            return _exact(load, quick if sets is None else _filled(sets, slots), bound / unit, bound == reached)
        start = quick
    left_s = deadline_s - (time.monotonic() - began)
    return _assign(load, weight, unit, ranks, slots, groups, node, start, left_s, jobs, seed)


def _assign(
    load: NDArray[np.float64],
    weight: NDArray[np.int64],
    unit: float,
    ranks: int,
    slots: int,
    groups: Sequence[int] | None,
    node: Sequence[int] | None,
    start: ArrayLike | None,
    deadline_s: float,
    jobs: int,
    seed: int,
) -> Exact:
    """Solve the assignment of copies to ranks: for hierarchical constraints, and where patterns are too many."""
    total, most = weight.shape
    floor = max(load.sum() / ranks, float(load.max()) / most)
    if start is not None and total * most * ranks > _BUILT_PER_S * deadline_s:
        return _exact(load, np.asarray(start, np.int32), floor, False)
    from ortools.sat.python import cp_model

    model: Any = cp_model.CpModel()
    # part[e][n][r]: expert e has n + 1 copies, one of them on rank r; loads are then linear and the relaxation tight
    copies_are = [[model.new_bool_var(f"c{e}_{n}") for n in range(most)] for e in range(total)]
    part = [[[model.new_bool_var(f"x{e}_{n}_{r}") for r in range(ranks)] for n in range(most)] for e in range(total)]
    held = [[sum(part[e][n][r] for n in range(most)) for r in range(ranks)] for e in range(total)]
    for expert in range(total):
        model.add_exactly_one(copies_are[expert])
        for n in range(most):
            model.add(sum(part[expert][n]) == (n + 1) * copies_are[expert][n])
        for rank in range(ranks):
            model.add_at_most_one(part[expert][n][rank] for n in range(most))
    top = int(weight[:, 0].sum())
    largest = model.new_int_var(-(-_least_total(weight) // ranks), top, "largest")
    on_rank = [
        sum(int(weight[e, n]) * part[e][n][rank] for e in range(total) for n in range(most)) for rank in range(ranks)
    ]
    for rank in range(ranks):
        model.add(sum(held[e][rank] for e in range(total)) <= slots)
        model.add(on_rank[rank] <= largest)
    if groups is not None and node is not None:
        _keep_groups(model, held, list(groups), list(node))
    else:
        # ranks are alike: fullest first
        for first, second in itertools.pairwise(on_rank):
            model.add(first >= second)
    if start is not None:
        _hint(model, part, copies_are, np.asarray(start))
    model.minimize(largest)

    solver: Any = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(deadline_s, 0.05)
    solver.parameters.num_workers = max(jobs, 1)
    solver.parameters.random_seed = seed
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        raise Infeasible(
            f"no placement of {total} experts on {ranks} x {slots} slots [ranks, slots] keeps every expert group on "
            "one node; add slots per rank, or plan without hierarchical"
        )
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        if start is not None:
            return _exact(load, np.asarray(start, np.int32), floor, False)
        raise InputError(f"cp-sat found no placement in {deadline_s:.1f} s; give a longer deadline")
    sets = [
        [e for e in range(total) if any(solver.boolean_value(part[e][n][rank]) for n in range(most))]
        for rank in range(ranks)
    ]
    bound = max(solver.best_objective_bound / unit, floor)
    return _exact(load, _filled(sets, slots), bound, status == cp_model.OPTIMAL)


def _exact(load: NDArray[np.float64], experts: NDArray[np.int32], bound: float, proven: bool) -> Exact:
    peak = float(rank_loads(experts[None], load[None]).max())
    return Exact(experts, peak, min(bound, peak), proven)


def _filled(sets: list[list[int]], slots: int) -> NDArray[np.int32]:
    experts = np.full((len(sets), slots), -1, np.int32)
    for rank, members in enumerate(sets):
        experts[rank, : len(members)] = members
    return experts


def _rank_totals(experts: NDArray[np.int32], weight: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the scaled load of each rank, int64 [ranks]."""
    copies = np.bincount(experts[experts >= 0], minlength=len(weight))
    share = np.append(weight[np.arange(len(weight)), copies - 1], 0)
    return np.asarray(share[experts].sum(axis=1))


def _whole_shares(load: NDArray[np.float64], most: int) -> tuple[NDArray[np.int64], float]:
    """Return the load of one copy if there are n + 1 copies, int64 [experts, most], and units per load."""
    exact = math.lcm(*range(1, most + 1))
    whole = bool(np.all(load == np.floor(load)))
    # rounded down where not exact, so that what is proven holds for the true loads as well
    fits = whole and load.sum() * exact < _LARGEST
    unit = float(exact) if fits else 1e6 / max(float(load.max()), 1e-300)
    shares = np.floor(load[:, None] * unit / np.arange(1, most + 1) + 1e-9).astype(np.int64)
    return shares, unit


def _least_total(weight: NDArray[np.int64]) -> int:
    """Return a load that all ranks together have at least: rounding can lose some."""
    copies = np.arange(1, weight.shape[1] + 1)
    return int((weight * copies).min(axis=1).sum())


def _keep_groups(model: Any, held: list[list[Any]], groups: list[int], node: list[int]) -> None:
    names, nodes = sorted(set(groups)), sorted(set(node))
    at = {(g, n): model.new_bool_var(f"g{g}_{n}") for g in names for n in nodes}
    for group in names:
        model.add_exactly_one(at[group, n] for n in nodes)
    for place in nodes:
        model.add(sum(at[g, place] for g in names) * len(nodes) == len(names))
    for expert, group in enumerate(groups):
        for rank, place in enumerate(node):
            model.add(held[expert][rank] <= at[group, place])
    # nodes are alike: the first group may go to the first one
    model.add(at[names[0], nodes[0]] == 1)


def _hint(model: Any, part: list[list[list[Any]]], count: list[list[Any]], start: NDArray[Any]) -> None:
    copies = np.bincount(start[start >= 0], minlength=len(part))
    for expert, by_count in enumerate(part):
        holders = (start == expert).any(axis=1)
        for n, by_rank in enumerate(by_count):
            model.add_hint(count[expert][n], int(copies[expert] == n + 1))
            for rank, variable in enumerate(by_rank):
                model.add_hint(variable, int(holders[rank] and copies[expert] == n + 1))
