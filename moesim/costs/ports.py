"""What a rank's own ports can do, read off the paths of a cluster once."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moesim.base.arrays import Array, Sealed, seal

if TYPE_CHECKING:
    from moesim.cluster import Cluster


@dataclass(frozen=True, eq=False)
class Ports(Sealed):
    """Per rank: bandwidth of its own ports; per pair: latency.

    Attributes
    ----------
    seconds_per_byte
        Time of one byte of a rank alone in the network, inside the node and across nodes [R, 2]; 0 where a rank has
        no such peer. Inside the node its bytes go to all peers alike, over as many links as it has (in a mesh one to
        each); the rank of the same rail in the next node stands for all other nodes.
    latency_s
        Path latency of every pair [R, R].
    inside_latency_s
        Largest latency of a path inside a node, 0 where there is none.
    mesh
        Whether ranks have links of their own to each other rank of their node, and no switch.
    """

    seconds_per_byte: Array
    latency_s: Array
    inside_latency_s: float
    mesh: bool

    def __post_init__(self) -> None:
        seal(self, "seconds_per_byte", self.seconds_per_byte, np.float64, ("ranks", "kinds"), {"kinds": 2})
        seal(self, "latency_s", self.latency_s, np.float64, ("ranks", "to"))


_KNOWN: weakref.WeakKeyDictionary[Cluster, Ports] = weakref.WeakKeyDictionary()


def ports(cluster: Cluster) -> Ports:
    """Return the ports of a cluster, computed on first use."""
    found = _KNOWN.get(cluster)
    if found is None:
        found = _KNOWN[cluster] = _read(cluster)
    return found


def _read(cluster: Cluster) -> Ports:
    ranks, node = cluster.ranks, cluster.node
    peer = np.full((ranks, 2), -1)
    for group in (np.flatnonzero(node == n) for n in range(cluster.nodes)):
        peer[group, 0] = np.roll(group, -1) if len(group) > 1 else -1
    if cluster.nodes > 1:
        peer[:, 1] = cluster.landing[np.arange(ranks), (node + 1) % cluster.nodes]
    cost = np.zeros((ranks, 2))
    for kind in range(2):
        have = np.flatnonzero(peer[:, kind] >= 0)
        if len(have):
            cost[have, kind] = cluster.paths.alone_s(1 / cluster.link_bandwidth, have, peer[have, kind])
    alone = cost[:, 0].copy()
    cost[:, 0] = _over_all(alone, spread_s(cluster, cluster.same_node & ~np.eye(ranks, dtype=bool)))
    latency = cluster.paths.latency_matrix()
    inside = latency[cluster.same_node]
    return Ports(cost, latency, float(inside.max()) if inside.size else 0.0, bool((cost[:, 0] < alone).all()))


def _over_all(alone: Array, spread: Array) -> Array:
    """Return the time of a byte over all links of a rank: as to one peer, to the last digit, where all share a port."""
    return np.where(spread < alone * (1 - 1e-9), spread, alone)


_GROUPS: weakref.WeakKeyDictionary[Cluster, dict[int, Array]] = weakref.WeakKeyDictionary()


def group_seconds_per_byte(cluster: Cluster, size: int) -> Array:
    """Return the time of one byte that groups of ``size`` consecutive ranks pass around [R], computed on first use.

    The slowest pair decides; where each two GPUs of a node have a link of their own, rings use all of them at once.
    """
    known = _GROUPS.setdefault(cluster, {})
    if size not in known:
        known[size] = _around(cluster, size)
    return known[size]


def _around(cluster: Cluster, size: int) -> Array:
    every = np.arange(cluster.ranks)
    first = every // size * size
    near, far = np.zeros((2, cluster.ranks))
    for shift in range(1, size):
        peer = first + (every - first + shift) % size
        alone = cluster.paths.alone_s(1 / cluster.link_bandwidth, every, peer)
        inside = cluster.same_node[every, peer]
        near, far = np.maximum(near, alone * inside), np.maximum(far, alone * ~inside)
    group = (first[:, None] == first) & ~np.eye(cluster.ranks, dtype=bool)
    spread = spread_s(cluster, group & cluster.same_node).reshape(-1, size).max(axis=1).repeat(size)
    return np.maximum(_over_all(near, spread), far)


def spread_s(cluster: Cluster, pairs: Array) -> Array:
    """Return the time of one byte that a rank alone in the network deals out over its peers [R], 0 where it has none.

    Parameters
    ----------
    pairs
        Who is a peer of whom, bool [R, R].
    """
    source, target = np.nonzero(pairs)
    flow, link, share = cluster.paths.flows(source, target)
    used, place = np.unique(source[flow] * cluster.links + link, return_inverse=True)
    rank, link = np.divmod(used, cluster.links)
    seconds = np.bincount(place.ravel(), share) / cluster.link_bandwidth[link] / pairs.sum(axis=1)[rank]
    slowest = np.zeros(cluster.ranks)
    np.maximum.at(slowest, rank, seconds)
    return slowest
