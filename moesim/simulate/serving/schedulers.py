"""Who serves a request: the rank at which it queues, and at which its attention and KV cache live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from moesim.base.arrays import Array
from moesim.base.registry import Registry
from moesim.placement import Placement
from moesim.simulate.serving.tokens import TokenSource

_WAITING_WEIGHT: Final = 4
"""A waiting request counts as four running ones, as in vLLM's data-parallel load balancer."""
_SLACK: Final = 0.1
"""How much fuller than the emptiest rank a rank may be to be chosen for its experts."""


@dataclass
class View:
    """What a scheduler sees of a pool when a request arrives.

    Parameters
    ----------
    waiting, running
        int64 [ranks]: requests that wait for their first token at each rank, and that generate.
    alive
        bool [ranks]: ranks that take requests.
    affinity
        Request -> float64 [ranks]: share of its expert picks that each rank reaches without leaving its node, and a
        little more for those it holds itself.
    sent
        Requests sent so far.
    """

    waiting: Array
    running: Array
    alive: Array
    affinity: Callable[[int], Array]
    sent: int = field(default=0)

    @property
    def load(self) -> Array:
        """How full each rank is; infinite where it is gone."""
        return np.where(self.alive, _WAITING_WEIGHT * self.waiting + self.running, np.inf)


class Scheduler(Protocol):
    """Chooses the rank of a request."""

    def __call__(self, view: View, request: int) -> int:
        """Return a rank that is alive."""
        ...


def round_robin(view: View, request: int) -> int:
    """Return the next rank in turn."""
    alive = np.flatnonzero(view.alive)
    return int(alive[view.sent % len(alive)])


def least_loaded(view: View, request: int) -> int:
    """Return the rank with the fewest requests, waiting ones counted four times; of equals the next in turn."""
    load = view.load
    best = np.flatnonzero(load == load.min())
    return int(best[view.sent % len(best)])


def expert_affinity(view: View, request: int) -> int:
    """Return, of the ranks that are about as empty as the emptiest, the one nearest to the request's experts."""
    load = view.load
    least = float(load.min())
    near = np.flatnonzero(load <= least + max(1.0, _SLACK * least))
    return int(near[np.argmax(view.affinity(request)[near])])


SCHEDULERS: Final[Registry[Scheduler]] = Registry(
    "request scheduler",
    {
        "round-robin": "moesim.simulate.serving.schedulers:round_robin",
        "least-loaded": "moesim.simulate.serving.schedulers:least_loaded",
        "expert-affinity": "moesim.simulate.serving.schedulers:expert_affinity",
    },
    "moesim.schedulers",
)
"""Request schedulers by name."""

KNOWS_ROUTING: Final = (
    "expert-affinity sees the routing of a request's prompt before it has run: what it gains is the most that a "
    "predictor of it could gain"
)


class Affinity:
    """Share of a request's picks near each rank, from the routing of its prompt; kept for each recorded request."""

    def __init__(self, source: TokenSource, placement: Placement, node: Array) -> None:
        self.source = source
        held = placement.has.astype(np.float64)
        nodes = np.eye(int(node.max()) + 1)[node]
        # a pick inside the node saves the network; on the rank itself it saves NVLink too, which counts little
        self.near = 0.9 * np.minimum(held @ nodes, 1)[..., node] + 0.1 * held
        self.known: dict[int, Array] = {}

    def __call__(self, request: int) -> Array:
        """Return float64 [ranks]."""
        drawn = int(self.source.drawn[request])
        if drawn not in self.known:
            routes = self.source.trace.routes
            picks = routes[self.source.prompt_rows(request)]  # type: ignore[index]  # checked by TokenSource
            L, E = self.near.shape[:2]
            layer = np.broadcast_to(np.arange(L)[:, None], picks.shape)
            kept = picks >= 0
            counts = np.bincount(layer[kept] * E + picks[kept], minlength=L * E)
            self.known[drawn] = counts @ self.near.reshape(L * E, -1) / max(int(kept.sum()), 1)
        return self.known[drawn]
