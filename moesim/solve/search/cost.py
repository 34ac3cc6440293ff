"""What the search makes small: a smooth layer time, from loads and counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.placement.kernels import compiled
from moesim.solve.search.state import TOKENS, State


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
def compute_s(load: Any, scale: Any, worst: int) -> float:
    """Return the smooth compute time in seconds, mean over scenarios or the slowest ``worst`` of them.

    The slowest rank decides, so ranks enter as a power mean (exponent 16): close to the largest, yet every rank counts
    a little, which gives the search a slope to walk down.

    Parameters
    ----------
    load
        Picks of each rank, float64 [ranks, scenarios].
    """
    ranks, scenarios = load.shape
    each = np.zeros(scenarios)
    for scenario in range(scenarios):
        top = powers = 0.0
        for rank in range(ranks):
            top = max(top, load[rank, scenario] * scale[TOKENS, rank])
        if top > 0:
            for rank in range(ranks):
                eighth = _power(load[rank, scenario] * scale[TOKENS, rank] / top)
                powers += eighth * eighth
            each[scenario] = top * (powers / ranks) ** (1 / 16)
    if 0 < worst < scenarios:
        return float(np.sort(each)[scenarios - worst :].sum() / worst)
    return float(each.sum() / scenarios)


@compiled
def network_s(counts: Any, scale: Any) -> float:
    """Return the smooth network time in seconds: a power mean (exponent 8) over cards and ranks, both ways."""
    counters, ranks = scale.shape
    total = top = 0.0
    for counter in range(1, counters):
        for rank in range(ranks):
            top = max(top, counts[counter, rank] * scale[counter, rank])
    if top > 0:
        for counter in range(1, counters):
            for rank in range(ranks):
                total += _power(counts[counter, rank] * scale[counter, rank] / top)
        total = top * (total / (ranks * 2)) ** (1 / 8)
    return total


@compiled
def priced(compute: float, prices: Prices) -> float:
    """Return what compute time counts: its weight, and more beyond the floor."""
    return float(prices.weight[0] * compute + prices.steep[0] * max(compute - prices.floor_s[0], 0.0))


@compiled
def cost(state: State, prices: Prices) -> float:
    """Return what the search makes small, in seconds of a layer."""
    compute = compute_s(state.load, prices.scale, prices.worst[0])
    return float(priced(compute, prices) + network_s(state.counts, prices.scale))
