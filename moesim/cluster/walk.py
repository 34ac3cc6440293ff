"""Equal-cost shortest paths between chosen vertices of a wiring, as flat tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled
from moesim.base.errors import InputError
from moesim.cluster.wiring import Wiring


@dataclass(frozen=True, eq=False)
class Core:
    """Directed links of a part of the wiring, grouped by their start.

    A rank that must not forward exists twice: as the vertex where paths end, and as ``leave[rank]``, a vertex
    that only has links out, where paths start.
    """

    leave: Array  # int64 [vertices]
    start: Array  # int64 [extended + 1]
    to: Array  # int64 [links], the vertex a link leads to
    link: Array  # int32 [links]
    cost: Array  # float64 [links], whole numbers

    @classmethod
    def of(cls, wiring: Wiring, cables: Array, cost: Array) -> Core:
        """Take the given cables of a wiring; ``cost`` is per cable of the whole wiring."""
        count = len(wiring.vertices)
        leave = np.arange(count)
        if not wiring.through_ranks:
            leave[: wiring.ranks] += count
        link = np.stack([2 * cables, 2 * cables + 1], axis=1).reshape(-1)
        begin = leave[wiring.link_from[link]]
        order = np.argsort(begin, kind="stable")
        extended = count + wiring.ranks
        start = np.searchsorted(begin[order], np.arange(extended + 1))
        link = link[order]
        return cls(leave, start, wiring.link_to[link].astype(np.int64), link.astype(np.int32), cost[link // 2])

    def distance_to(self, points: Array) -> Array:
        """Return the cost from every extended vertex to each point, float64 [points, extended]; inf: no path."""
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import dijkstra

        extended = len(self.start) - 1
        begin = np.repeat(np.arange(extended), np.diff(self.start))
        # the cheapest of parallel links: a sparse matrix would add them up
        order = np.lexsort((self.cost, begin, self.to))
        key = self.to[order] * extended + begin[order]
        order = order[np.unique(key, return_index=True)[1]]
        reverse = csr_array((self.cost[order], (self.to[order], begin[order])), shape=(extended, extended))
        return np.asarray(dijkstra(reverse, indices=points))


def core_paths(core: Core, points: Array, limit: int) -> tuple[Array, Array, Array, Array]:
    """Return the equal-cost paths between points: (start [P*P+1], link, share, distance [P, P]).

    The bytes of a pair split equally over the next hops at every vertex, as ECMP does; pairs without a path have
    no links and an infinite distance.

    Raises
    ------
    InputError
        If a table would hold more than ``limit`` entries.
    """
    if len(points) * (len(core.start) - 1) > limit:
        raise _too_irregular(len(points) * (len(core.start) - 1), limit)
    to_point = core.distance_to(points)
    begin = core.leave[points]
    count = _walk(begin, points, to_point, core.start, core.to, core.link, core.cost, np.zeros(0, np.int64))[2]
    total = int(count.sum())
    if total > limit:
        raise _too_irregular(total, limit)
    start = np.concatenate([[0], np.cumsum(count)])
    link, share, _ = _walk(begin, points, to_point, core.start, core.to, core.link, core.cost, start)
    distance = to_point[:, begin].T.copy()
    np.fill_diagonal(distance, 0.0)
    return start, link, share, distance


def _too_irregular(size: int, limit: int) -> InputError:
    return InputError(
        f"topology: the table of paths would hold {size:,} entries (limit {limit:,}); give every GPU one NIC and one "
        "link to its node's switch, so that ranks share attachment points"
    )


@compiled
def _walk(
    begin: Array, points: Array, distance: Array, start: Array, to: Array, link: Array, cost: Array, place: Array
) -> tuple[Array, Array, Array]:
    """Walk the pairs level by level; without places only count their links."""
    size, extended = points.size, start.size - 1
    fill = place.size > 0
    out_link = np.empty(place[-1] if fill else 0, np.int32)
    out_share = np.empty(place[-1] if fill else 0, np.float64)
    count = np.zeros(size * size, np.int64)
    amount = np.zeros(extended)
    here, there = np.empty(extended, np.int64), np.empty(extended, np.int64)
    first, hop = np.empty(extended + 1, np.int64), np.empty(to.size, np.int64)
    for b in range(size):
        # the next hops towards b, once for all sources
        ways = 0
        for v in range(extended):
            first[v] = ways
            for e in range(start[v], start[v + 1]):
                if np.isfinite(distance[b, v]) and cost[e] + distance[b, to[e]] == distance[b, v]:
                    hop[ways] = e
                    ways += 1
        first[extended] = ways
        for a in range(size):
            if a == b or not np.isfinite(distance[b, begin[a]]):
                continue
            pair = a * size + b
            here[0] = begin[a]
            amount[begin[a]] = 1.0
            width, used = 1, 0
            while here[0] != points[b]:
                reached = 0
                for i in range(width):
                    v = here[i]
                    part = amount[v] / (first[v + 1] - first[v])
                    amount[v] = 0.0
                    for n in range(first[v], first[v + 1]):
                        w = to[hop[n]]
                        if amount[w] == 0.0:
                            there[reached] = w
                            reached += 1
                        amount[w] += part
                        if fill:
                            out_link[place[pair] + used] = link[hop[n]]
                            out_share[place[pair] + used] = part
                        used += 1
                here, there = there, here
                width = reached
            amount[points[b]] = 0.0
            count[pair] = used
    return out_link, out_share, count
