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
    spread = spread_s(cluster, cluster.same_node & ~np.eye(ranks, dtype=bool))
    # one peer stands for all, to the last digit, where all share a port
    apart = spread < cost[:, 0] * (1 - 1e-9)
    cost[:, 0] = np.where(apart, spread, cost[:, 0])
    latency = cluster.paths.latency_matrix()
    inside = latency[cluster.same_node]
    return Ports(cost, latency, float(inside.max()) if inside.size else 0.0, bool(apart.all()))


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
