"""What the experts of a layer take at least, however their load is shared: the slowest rank, and the mean one.

The compute model is taken to be monotone: more tokens, or the same in more slots, never take less time.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.costs import Costs

_GRID: Final = 768
"""Points at which the compute model is sampled for its lower envelope."""
_FAR: Final = 4.0
"""Loads of a rank in means up to which the envelope reaches; a rank with more is slower than any bound."""
_SOME: Final = 1e-9
"""Tokens of a slot that is active and no more (expected counts can be fractions)."""


class Work:
    """The experts of every layer of a step.

    Parameters
    ----------
    pairs, active
        (Token, expert) pairs and active experts, [layers].
    slots
        Experts that a rank can hold.
    """

    def __init__(self, costs: Costs, pairs: Array, active: Array, slots: int) -> None:
        self.ranks, self.slots = costs.cluster.ranks, slots
        self.pairs, self.active = pairs, active
        self.mean: Array = pairs / self.ranks
        far = _FAR * float(self.mean.max(initial=0))
        near = np.linspace(0.0, max(far, 1.0), _GRID)
        tail = np.geomspace(1.0, max(float(pairs.max(initial=0)), 2.0), _GRID // 16)
        self.grid: Array = np.unique(np.concatenate([near, tail, self.mean]))
        self.seconds = _sampled(costs, self.grid[:, None] * np.eye(1, slots))
        self.filling = _sampled(costs, _SOME * np.tril(np.ones((slots + 1, slots)), -1))
        self.last = int(np.searchsorted(self.grid, far, side="right")) - 1

    @property
    def speed(self) -> Array:
        """One over the seconds of every rank at the mean load, all of it in one slot [ranks]."""
        most = max(float(self.mean.max(initial=0)), 1.0)
        return np.asarray(1 / self.seconds[np.searchsorted(self.grid, most, side="right") - 1])

    @property
    def idle_s(self) -> float:
        """Seconds of a rank without tokens."""
        return float(self.seconds[0].min())

    def slowest(self) -> Array:
        """Return seconds [layers] that the slowest rank takes at least."""
        by_load = np.array([_fullest(self.grid, self.seconds, float(total)) for total in self.pairs])
        held = np.minimum(np.ceil(self.active / self.ranks).astype(np.int64), self.slots)
        return np.asarray(np.maximum(by_load, self.filling.min(axis=1)[held]))

    def shared(self, share: Array) -> Array:
        """Return seconds [layers] at least, mean over ranks weighted by ``share`` [ranks], which adds up to 1.

        Holds where no rank has more than a few times the mean load; one that has takes :attr:`far_s` alone.
        """
        weight = share * self.ranks
        fastest = (self.seconds * weight).min(axis=1)[: self.last + 1]
        # between two samples the time is at least that of the left one
        x = np.concatenate([[0.0], self.grid[1 : self.last + 1]])
        y = np.concatenate([fastest[:1], fastest[:-1]])
        filling = (self.filling * weight).min(axis=1)
        held = np.minimum(self.active / self.ranks, self.slots)
        return np.maximum(_envelope(x, y, self.mean), _envelope(np.arange(self.slots + 1.0), filling, held))

    @property
    def far_s(self) -> float:
        """Seconds of a rank that has more than a few times the mean load."""
        return float(self.seconds[self.last].min()) if self.last < len(self.grid) - 1 else np.inf


def _sampled(costs: Costs, slot_tokens: Array) -> Array:
    """Return the seconds of every rank with these tokens per slot [points, slots]; [points, ranks], never falling.

    Points stand in ascending order. A model that is not monotone is bounded from below by its running minimum, and
    beyond what it knows (a kernel table ends somewhere) it takes no less than at the last point that it does know.
    """
    points, slots = slot_tokens.shape
    tokens = np.broadcast_to(slot_tokens[:, None, :], (points, costs.cluster.ranks, slots))
    try:
        seconds = costs.experts_s(tokens)
    except InputError:
        known = costs.experts_s(tokens[: _known(costs, tokens)])
        seconds = known[np.minimum(np.arange(points), len(known) - 1)]
    return np.asarray(np.minimum.accumulate(seconds[::-1], axis=0)[::-1])


def _known(costs: Costs, tokens: Array) -> int:
    """Return how many of ascending points, at least one, the compute model has an answer for."""
    low, high = 1, len(tokens)
    while low < high - 1:
        middle = (low + high) // 2
        try:
            costs.experts_s(tokens[middle - 1])
        except InputError:
            high = middle
        else:
            low = middle
    return low


def _fullest(grid: Array, seconds: Array, total: float) -> float:
    """Return the least time in which ranks can share ``total`` pairs, from samples ``seconds`` [grid, ranks]."""
    if np.ptp(seconds, axis=1).max() == 0:
        # equal ranks: one of them holds the mean
        return float(seconds[np.searchsorted(grid, total / seconds.shape[1], side="right") - 1, 0])
    for limit in np.unique(seconds):
        # a rank may hold anything below the first sample that takes longer
        within = (seconds <= limit).sum(axis=0)
        room = np.where(within < len(grid), grid[np.minimum(within, len(grid) - 1)], np.inf)
        if room[within > 0].sum() >= total:
            return float(limit)
    return float(seconds.max())


def _envelope(x: Array, y: Array, at: Array) -> Array:
    """Return the largest convex function below the points ``x`` (ascending), ``y``, at ``at``: least means."""
    kept: list[int] = []
    for index in range(len(x)):
        # drop points that lie above the line from the one before them to the new one
        while len(kept) > 1 and (y[kept[-1]] - y[kept[-2]]) * (x[index] - x[kept[-2]]) >= (y[index] - y[kept[-2]]) * (
            x[kept[-1]] - x[kept[-2]]
        ):
            kept.pop()
        kept.append(index)
    return np.asarray(np.interp(at, x[kept], y[kept]))
