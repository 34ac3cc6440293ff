"""Work that a move shifts from rank to rank, and how to shift it back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moesim.placement.kernels import compiled
from moesim.solve.search.cost import fill_powers, reference_s, steep_power
from moesim.solve.search.state import TOKENS


class Working(NamedTuple):
    """Powers of the ranks' times, and what the last shift changed.

    ``powers`` float64 [ranks, scenarios], see :func:`moesim.solve.search.cost.powers_s`; ``reference``, ``each``
    float64 [scenarios]; ``touched`` int64 [ranks + 1]: how many ranks have changed, then which; ``load_was``,
    ``powers_was`` float64 [ranks, scenarios]: of these ranks, in this order.
    """

    powers: Any
    reference: Any
    each: Any
    touched: Any
    load_was: Any
    powers_was: Any


@compiled
def working(load: Any, scale: Any) -> Working:
    """Return powers for ``load`` float64 [ranks, scenarios]."""
    ranks, scenarios = load.shape
    reference = reference_s(load, scale)
    powers = np.zeros((ranks, scenarios))
    fill_powers(powers, load, scale, reference)
    touched = np.zeros(ranks + 1, np.int64)
    return Working(
        powers, reference, np.zeros(scenarios), touched, np.zeros((ranks, scenarios)), np.zeros((ranks, scenarios))
    )


@compiled
def shift(work: Working, load: Any, scale: Any, before: Any, demand: Any, experts: Any, after: Any) -> None:
    """Change load and powers from parts ``before`` [all experts, ranks] to ``after`` [some experts, ranks]."""
    ranks, scenarios = load.shape
    touched = 0
    for rank in range(ranks):
        changed = False
        for index in range(len(experts)):
            if after[index, rank] != before[experts[index], rank]:
                changed = True
        if not changed:
            continue
        for scenario in range(scenarios):
            work.load_was[touched, scenario] = load[rank, scenario]
            work.powers_was[touched, scenario] = work.powers[rank, scenario]
        touched += 1
        work.touched[touched] = rank
        for index in range(len(experts)):
            more = after[index, rank] - before[experts[index], rank]
            for scenario in range(scenarios):
                load[rank, scenario] += more * demand[experts[index], scenario]
        for scenario in range(scenarios):
            if work.reference[scenario] > 0:
                part = load[rank, scenario] * scale[TOKENS, rank] / work.reference[scenario]
                work.powers[rank, scenario] = steep_power(part)
    work.touched[0] = touched


@compiled
def unshift(work: Working, load: Any) -> None:
    """Undo the last shift."""
    for index in range(work.touched[0]):
        rank = work.touched[index + 1]
        for scenario in range(load.shape[1]):
            load[rank, scenario] = work.load_was[index, scenario]
            work.powers[rank, scenario] = work.powers_was[index, scenario]
