"""Work that a move shifts from rank to rank: what it would come to, and that it does."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moesim.base.compiled import compiled
from moesim.solve.search.cost import fill_powers, reference_s, steep_power
from moesim.solve.search.state import TOKENS


class Working(NamedTuple):
    """Powers of the ranks' times, as they are and as they would be.

    ``unit`` float64 [ranks, scenarios]: time of a pick over the reference; ``powers`` float64 [ranks, scenarios] and
    ``total`` float64 [scenarios], see :func:`moesim.solve.search.cost.powers_s`; ``reference``, ``each`` float64
    [scenarios]. Of the last shift: ``total_then``; ``touched`` int64 [ranks + 1]: how many ranks change, then which;
    ``load_then``, ``powers_then`` float64 [ranks, scenarios]: theirs, in this order.
    """

    unit: Any
    powers: Any
    total: Any
    reference: Any
    each: Any
    total_then: Any
    touched: Any
    load_then: Any
    powers_then: Any


@compiled
def working(load: Any, scale: Any) -> Working:
    """Return powers for ``load`` float64 [ranks, scenarios]."""
    ranks, scenarios = load.shape
    reference = reference_s(load, scale)
    powers = np.zeros((ranks, scenarios))
    fill_powers(powers, load, scale, reference)
    total = np.zeros(scenarios)
    unit = np.zeros((ranks, scenarios))
    for rank in range(ranks):
        for scenario in range(scenarios):
            total[scenario] += powers[rank, scenario]
            if reference[scenario] > 0:
                unit[rank, scenario] = scale[TOKENS, rank] / reference[scenario]
    return Working(
        unit, powers, total, reference, np.zeros(scenarios), total.copy(), np.zeros(ranks + 1, np.int64),
        np.zeros((ranks, scenarios)), np.zeros((ranks, scenarios)),
    )  # fmt: skip


@compiled
def shift(work: Working, load: Any, before: Any, demand: Any, experts: Any, several: int, after: Any) -> None:
    """Work out what parts ``after`` [experts, ranks] instead of ``before`` [all experts, ranks] come to.

    ``experts`` are int32; only the first ``several`` count.
    """
    unit, powers, total, load_then, powers_then = (
        work.unit, work.powers, work.total_then, work.load_then, work.powers_then,
    )  # fmt: skip
    ranks, scenarios = load.shape
    for scenario in range(scenarios):
        total[scenario] = work.total[scenario]
    touched = 0
    for rank in range(ranks):
        changed = False
        for index in range(several):
            changed |= after[index, rank] != before[experts[index], rank]
        if not changed:
            continue
        for scenario in range(scenarios):
            load_then[touched, scenario] = load[rank, scenario]
        for index in range(several):
            more = after[index, rank] - before[experts[index], rank]
            for scenario in range(scenarios):
                load_then[touched, scenario] += more * demand[experts[index], scenario]
        for scenario in range(scenarios):
            power = steep_power(load_then[touched, scenario] * unit[rank, scenario])
            total[scenario] += power - powers[rank, scenario]
            powers_then[touched, scenario] = power
        touched += 1
        work.touched[touched] = rank
    work.touched[0] = touched


@compiled
def take(work: Working, load: Any) -> None:
    """Let the last shift happen."""
    scenarios = load.shape[1]
    for index in range(work.touched[0]):
        rank = work.touched[index + 1]
        for scenario in range(scenarios):
            load[rank, scenario] = work.load_then[index, scenario]
            work.powers[rank, scenario] = work.powers_then[index, scenario]
    for scenario in range(scenarios):
        work.total[scenario] = work.total_then[scenario]
