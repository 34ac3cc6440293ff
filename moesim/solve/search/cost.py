"""What the search makes small: a smooth layer time, from loads and counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.base.compiled import compiled
from moesim.solve.search.state import INSIDE_IN, INSIDE_OUT, NIC_IN, NIC_OUT, TOKENS, State


class Prices(NamedTuple):
    """What counts are worth.

    ``scale`` float64 [counters, ranks]: seconds of one count; ``weight`` float64 [1] of compute time; ``floor_s``
    float64 [1]: compute time beyond this counts ``steep`` float64 [1] times more; ``worst`` int64 [1]: scenarios that
    are averaged, the slowest ones, 0: all.
    """

    scale: Any
    weight: Any
    floor_s: Any
    steep: Any
    worst: Any


def prices(
    scale: NDArray[np.float64], weight: float = 1.0, floor_s: float = np.inf, steep: float = 0.0, worst: int = 0
) -> Prices:
    """Return prices, see :class:`Prices`."""
    return Prices(scale, np.array([weight]), np.array([floor_s]), np.array([steep]), np.array([worst], np.int64))


@compiled
def _power(value: float) -> float:
    square = value * value
    fourth = square * square
    return fourth * fourth


@compiled
def steep_power(value: float) -> float:
    """Return a value to the power of 16."""
    eighth = _power(value)
    return eighth * eighth


@compiled
def reference_s(load: Any, scale: Any) -> Any:
    """Return the mean compute time of a rank in each scenario, float64 [scenarios].

    Times are compared with it, so that their powers neither vanish nor overflow.
    """
    ranks, scenarios = load.shape
    found = np.zeros(scenarios)
    for rank in range(ranks):
        for scenario in range(scenarios):
            found[scenario] += load[rank, scenario] * (scale[TOKENS, rank] / ranks)
    return found


@compiled
def powers_s(total: Any, ranks: int, reference: Any, worst: int, each: Any) -> float:
    """Return the smooth compute time in seconds from powers of the ranks' times, mean over scenarios or slowest ones.

    Parameters
    ----------
    total
        Sum over ranks of time over the reference to the power of 16, float64 [scenarios].
    reference
        Seconds, float64 [scenarios].
    worst
        Scenarios that are averaged, 0: all.
    each
        Working space, float64 [scenarios].
    """
    scenarios = len(total)
    found = 0.0
    for scenario in range(scenarios):
        each[scenario] = reference[scenario] * np.sqrt(np.sqrt(np.sqrt(np.sqrt(total[scenario] / ranks))))
        found += each[scenario]
    if 0 < worst < scenarios:
        found = 0.0
        for _ in range(worst):
            slowest = 0
            for scenario in range(scenarios):
                if each[scenario] > each[slowest]:
                    slowest = scenario
            found += each[slowest]
            each[slowest] = -1.0
        return float(found / worst)
    return float(found / scenarios)


@compiled
def compute_s(load: Any, scale: Any, worst: int) -> float:
    """Return the smooth compute time in seconds, mean over scenarios or the slowest ``worst`` of them.

    The slowest rank decides, so ranks enter as a power mean (exponent 16): close to the largest, yet every rank counts
    a little, which gives the search a slope to walk down.

    Parameters
    ----------
    load
        Picks of each rank, float64 [ranks, scenarios].
    """
    reference = reference_s(load, scale)
    powers = np.zeros(load.shape)
    fill_powers(powers, load, scale, reference)
    total = np.zeros(load.shape[1])
    for rank in range(len(powers)):
        for scenario in range(len(total)):
            total[scenario] += powers[rank, scenario]
    return powers_s(total, len(powers), reference, worst, np.zeros(load.shape[1]))


@compiled
def fill_powers(powers: Any, load: Any, scale: Any, reference: Any) -> None:
    """Write the powers that :func:`powers_s` adds up."""
    for rank in range(load.shape[0]):
        for scenario in range(load.shape[1]):
            if reference[scenario] > 0:
                powers[rank, scenario] = steep_power(load[rank, scenario] * scale[TOKENS, rank] / reference[scenario])


@compiled
def network_s(counts: Any, scale: Any) -> float:
    """Return the smooth network time in seconds: a power mean (exponent 8) over cards and ranks, both ways."""
    ranks = scale.shape[1]
    # over the mean, so that powers neither vanish nor overflow
    mean = 0.0
    for rank in range(ranks):
        mean += (
            (counts[NIC_IN, rank] * scale[NIC_IN, rank] + counts[NIC_OUT, rank] * scale[NIC_OUT, rank])
            + (counts[INSIDE_IN, rank] * scale[INSIDE_IN, rank] + counts[INSIDE_OUT, rank] * scale[INSIDE_OUT, rank])
        )  # fmt: skip
    mean /= 2 * ranks
    if mean <= 0:
        return 0.0
    part = 1 / mean
    total = 0.0
    for rank in range(ranks):
        # sums of two, so that they do not wait for each other
        total += (
            (_power(counts[NIC_IN, rank] * scale[NIC_IN, rank] * part)
             + _power(counts[NIC_OUT, rank] * scale[NIC_OUT, rank] * part))
            + (_power(counts[INSIDE_IN, rank] * scale[INSIDE_IN, rank] * part)
               + _power(counts[INSIDE_OUT, rank] * scale[INSIDE_OUT, rank] * part))
        )  # fmt: skip
    return float(mean * np.sqrt(np.sqrt(np.sqrt(total / (ranks * 2)))))


@compiled
def priced(compute: float, prices: Prices) -> float:
    """Return what compute time counts: its weight, and more beyond the floor."""
    return float(prices.weight[0] * compute + prices.steep[0] * max(compute - prices.floor_s[0], 0.0))


@compiled
def cost(state: State, prices: Prices) -> float:
    """Return what the search makes small, in seconds of a layer."""
    compute = compute_s(state.load, prices.scale, prices.worst[0])
    return float(priced(compute, prices) + network_s(state.counts, prices.scale))
