"""Proof by patterns: which sets of copies a rank can hold, and how often each set is used.

Ranks that are alike make the assignment of copies to ranks hugely symmetric, and proofs slow. Where the sets of
copies that a rank could hold are few, one whole number per set - on how many ranks it sits - has no such symmetry.
Whether all copies fit with no rank above a limit is then a small covering problem, and the least limit is found by
bisection over the loads that sets can have.
"""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MOST_PATTERNS: Final = 20_000
"""More sets than this are left to the assignment model."""


def patterns(
    weight: NDArray[np.int64], slots: int, limit: int, most: int = MOST_PATTERNS
) -> list[tuple[int, tuple[tuple[int, int], ...]]] | None:
    """Return every set of copies that a rank can hold as (load, ((expert, copies - 1), ...)); None if too many.

    Parameters
    ----------
    weight
        Load of one copy where there are n + 1 of them, [experts, most copies].
    limit
        Largest load of a set.
    """
    found: list[tuple[int, tuple[tuple[int, int], ...]]] = [(0, ())]
    open_sets = found[:]
    for _ in range(slots):
        grown = []
        for load, members in open_sets:
            first = members[-1][0] + 1 if members else 0
            for expert in range(first, len(weight)):
                for n, share in enumerate(weight[expert].tolist()):
                    if load + share <= limit:
                        grown.append((load + share, (*members, (expert, n))))
            if len(found) + len(grown) > most:
                return None
        found += grown
        open_sets = grown
    return found


def least_limit(
    weight: NDArray[np.int64], ranks: int, slots: int, low: int, high: int, *, deadline_s: float, jobs: int, seed: int
) -> tuple[int, int, list[list[int]] | None] | None:
    """Return (proven lower bound, limit reached, experts of each rank or None if ``high`` stands), or None.

    None where the sets are too many. ``high`` is a limit known to be reachable; a better one comes with its placement.
    """
    sets = patterns(weight, slots, high - 1)
    if sets is None:
        return None
    until = time.monotonic() + deadline_s
    best: list[list[int]] | None = None
    limits = sorted({load for load, _ in sets if load >= low})
    first, last = 0, len(limits)
    while first < last:
        middle = (first + last) // 2
        within = [members for load, members in sets if load <= limits[middle]]
        answer = _fits(weight.shape, within, ranks, until - time.monotonic(), jobs, seed)
        if answer is None:
            break
        if answer:
            best, last = answer, middle
        else:
            first = middle + 1
    # nothing below limits[first] is left to look at
    bound = limits[first] if first < len(limits) else high
    reached = limits[last] if last < len(limits) else high
    return bound, reached, best


def _fits(
    shape: tuple[int, ...], sets: list[tuple[tuple[int, int], ...]], ranks: int, deadline_s: float, jobs: int, seed: int
) -> list[list[int]] | None:
    """Return experts of each rank with these sets, an empty list if proven impossible, None if time ran out."""
    from ortools.sat.python import cp_model

    if deadline_s <= 0:
        return None
    model: Any = cp_model.CpModel()
    used = [model.new_int_var(0, ranks, f"y{i}") for i in range(len(sets))]
    cover: dict[tuple[int, int], list[Any]] = {}
    for variable, members in zip(used, sets, strict=True):
        for member in members:
            cover.setdefault(member, []).append(variable)
    for expert in range(shape[0]):
        count = [model.new_bool_var(f"c{expert}_{n}") for n in range(shape[1])]
        model.add_exactly_one(count)
        for n, chosen in enumerate(count):
            model.add(sum(cover.get((expert, n), [])) == (n + 1) * chosen)
    model.add(sum(used) == ranks)
    solver: Any = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = deadline_s
    solver.parameters.num_workers = max(jobs, 1)
    solver.parameters.random_seed = seed
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return []
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return [
        [expert for expert, _ in members]
        for variable, members in zip(used, sets, strict=True)
        for _ in range(solver.value(variable))
    ]
