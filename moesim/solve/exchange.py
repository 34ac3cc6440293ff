"""What dispatch and combine of a layer take at least, whatever the placement: counts that must move, times rates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.arrays import Array
from moesim.costs import Costs
from moesim.costs.types import Direction
from moesim.solve.copies import Leaving, leaving
from moesim.solve.coverage import uncovered_tokens
from moesim.solve.objective import Fixed
from moesim.solve.rates import UNITS, Way, local_flow


@dataclass(frozen=True, eq=False)
class Moved:
    """What one step must move at least, in the unit that the transport carries.

    Attributes
    ----------
    unit
        ``"node"``, ``"rank"`` or ``"pair"``: a token per node, a token per rank, a pair; ``"none"``: all is fixed.
    left
        Pairs and copies that must leave.
    across, across_home
        Units that cross nodes [layers], and those of each home rank on its own [layers, ranks].
    away
        Units that leave their rank, or that are forwarded where the unit is a copy per node; [layers].
    """

    unit: str
    left: Leaving
    across: Array
    across_home: Array
    away: Array


def must_move(costs: Costs, routes: Array, home: Array, slots: int) -> Moved:
    """Count what a step must move: tokens that a node cannot serve alone, pairs and copies."""
    cluster, experts = costs.cluster, costs.spec.experts
    unit = UNITS.get(costs.transport, "node")
    left = leaving(routes, home, cluster.node, cluster.landing, experts, slots)
    if unit == "pair":
        return Moved(unit, left, left.pairs_across, left.pairs_across_home, left.pairs_away)
    room = np.minimum(np.bincount(cluster.node) * slots, experts)
    together, by_home = uncovered_tokens(routes, home, cluster.node, room, experts)
    across = np.maximum(together, left.nodes_across)
    if unit == "rank":
        # a copy for a rank of another node is one for that node as well
        by_rank = np.maximum(left.copies_across, across), np.maximum(left.copies_across_home, by_home)
        return Moved(unit, left, *by_rank, left.copies_away)
    return Moved(unit, left, across, by_home, left.copies_forwarded)


class Exchange:
    """Dispatch or combine of every layer of a step; seconds are those beyond the floor.

    ``share`` [ranks] are weights that add up to 1, by which means over ranks are taken.
    """

    def __init__(self, costs: Costs, direction: Direction, way: Way, moved: Moved, fixed: Fixed) -> None:
        self.way, self.moved = way, moved
        self.shared_links = costs.network == "bottleneck" and way.everyone
        # what depends on tokens alone, and in combine of pairs the receive pass over each home's results
        own = moved.left.pairs_home * (direction == "combine" and moved.unit == "pair")
        flow = local_flow(costs, own, own, fixed.tokens)
        timing = costs.dispatch(flow) if direction == "dispatch" else costs.combine(flow)
        self.fixed: Array = np.maximum(timing.arrive_s - timing.floor_s[:, None], 0.0)
        self.drain: Array = timing.drain_s
        apart = ~np.eye(costs.cluster.ranks, dtype=bool)
        self.to_all = bool(timing.senders[:, apart].all())
        # what a rank sends whatever the placement is there no later than the first rank that gets it
        own = timing.own_s - timing.floor_s[:, None] + (timing.drain_s[:, None] if self.to_all else 0.0)
        self.own: Array = np.minimum(own, self.fixed.min(axis=1, keepdims=True))

    def received(self, share: Array) -> Array:
        """Return the mean seconds [layers] after which ranks have received."""
        way, moved = self.way, self.moved
        busy: Array = moved.across * (share * way.across_in).min()
        if moved.unit == "node":
            busy = np.maximum(busy, moved.left.copies_total * (share * way.engine).min())
        busy = np.maximum(busy, self._away(share, way.across_in, way.inside_in))
        # the receive pass of the fullest rank is charged to all; it is least where all end theirs together
        with np.errstate(divide="ignore"):
            drain = np.maximum(moved.left.pairs / (1 / way.drain).sum(), self.drain)
        return np.asarray(np.maximum(np.maximum(busy - way.hidden_s, 0.0) + drain, self.fixed @ share))

    def sent(self, share: Array) -> Array:
        """Return the mean seconds [layers] that the bytes of ranks need with nobody else in the network."""
        way = self.way
        across: Array = self.moved.across * (share * way.across_out).min()
        busy = np.maximum(across, self._away(share, way.across_out, way.inside_out)) - way.hidden_s
        return np.asarray(np.maximum(np.maximum(busy, 0.0), self.own @ share))

    def sent_to_all(self, share: Array) -> Array:
        """Return what every rank waits for of that [layers]; nothing where some rank may owe some other nothing."""
        own = self.own * share
        return np.asarray(own.sum(axis=1) - own.max(axis=1) if self.to_all else np.zeros(len(own)))

    def late(self, share: Array) -> Array:
        """Return seconds [layers] by which the last home rank to send delays its servers, mean over ranks.

        It is not known which rank that is: the least over all. Its servers in other nodes wait for all that it sends
        there, where a flow takes as long as the links that it shares.
        """
        if not self.shared_links:
            return np.zeros(len(self.moved.across))
        own = np.maximum(self.moved.across_home * self.way.across_out - self.way.hidden_s, 0.0)
        least = np.concatenate([[0.0], np.cumsum(np.sort(share))])
        return np.asarray((own * least[self.moved.left.servers_home.astype(np.int64)]).min(axis=1))

    def home(self) -> tuple[Array, Array]:
        """Return the seconds after which the first and the last rank have results of their own tokens, [layers]."""
        busy = self.moved.across_home * self.way.across_in - self.way.hidden_s
        own = np.maximum(np.maximum(busy, 0.0) + self.drain[:, None], self.fixed)
        return np.asarray(own.min(axis=1)), np.asarray(own.max(axis=1))

    def _away(self, share: Array, across: Array, inside: Array) -> Array:
        """Return the least mean time [layers] for units that leave their rank."""
        units: Array = self.moved.away
        if self.moved.unit in ("node", "none"):
            # every copy that is forwarded passes inside
            return np.asarray(units * (share * inside).min())
        # across nodes and inside at once: a rank is done with both at the earliest when it shares them out
        with np.errstate(divide="ignore"):
            rate = np.where(across > 0, 1 / across, 0.0) + np.where(inside > 0, 1 / inside, 0.0)
        return np.asarray(units * (share / rate).min() if (rate > 0).all() else np.zeros_like(units))
