"""Seconds that a transport needs at least per unit it carries, read off probes of the cost models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from moesim.base.arrays import Array
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.costs.ports import ports
from moesim.costs.types import Direction
from moesim.placement import Flow

UNITS: Final = {"hierarchical": "node", "rank-dedup": "rank", "nvlink": "rank", "direct": "pair", "allgather": "none"}
"""What a transport carries once: a token per node, a token per rank, a (token, expert) pair; or everything anyway.

Of other transports only what tokens cost that stay at home, and copies that cross nodes, is taken to be known.
"""


@dataclass(frozen=True, eq=False)
class Way:
    """Least seconds of one direction; arrays are per rank, seconds per unit, 0 where nothing is known.

    Attributes
    ----------
    floor_s, hidden_s
        Floor of an empty exchange; part of it during which bytes move.
    across_in, inside_in
        What a unit from another node, or from another rank of the node, takes at the rank that gets it.
    across_out, inside_out
        The same at the rank that sends it, in the sender's own time (``Timing.own_s``).
    engine
        What a copy takes at the rank that serves it, wherever it comes from.
    drain
        What a pair adds to the receive pass.
    everyone
        Whether every rank waits for a word of every rank.
    """

    floor_s: float
    hidden_s: float
    across_in: Array
    inside_in: Array
    across_out: Array
    inside_out: Array
    engine: Array
    drain: Array
    everyone: bool

    @classmethod
    def of(cls, costs: Costs, direction: Direction) -> Way:
        """Probe the costs."""
        cluster, unit = costs.cluster, UNITS.get(costs.transport, "node")
        nothing = np.zeros((1, cluster.ranks))
        empty = local_flow(costs, nothing, nothing, nothing[0])
        timing = costs.dispatch(empty) if direction == "dispatch" else costs.combine(empty)
        one = costs.transfer(local_flow(costs, nothing + 1, nothing + 1, nothing[0]), direction)
        none = np.zeros(cluster.ranks)
        across_in = across_out = inside_in = inside_out = none
        if unit != "none":
            remote = ~cluster.same_node
            flow = _probe(cluster, _landing(cluster))
            across_in = _bytes(costs, flow, direction) * _common(cluster, remote, inbound=True)
            if unit != "node" or direction == "dispatch":
                # own bytes of a unit (on the way home the rails of a node share those of its copies), on the slower of
                # the rank's port and of what all its traffic must pass
                own = costs.transfer(flow, direction).own_bytes[0, :, 1] / np.maximum(_sent(flow, direction), 1)
                port = np.minimum(ports(cluster).seconds_per_byte[:, 1], _common(cluster, remote, inbound=False))
                across_out = own * port
        if costs.transport in UNITS and unit != "none":
            near = cluster.same_node & ~np.eye(cluster.ranks, dtype=bool)
            flow = _probe(cluster, near)
            carried = costs.transfer(flow, direction)
            got = np.maximum(near.sum(axis=0), 1)
            engine = np.maximum.reduce([part[0] for part in carried.in_s]) / got
            inside_in = np.maximum(_bytes(costs, flow, direction) * _common(cluster, near, inbound=True), engine)
            own = carried.own_bytes[0, :, 0] / np.maximum(near.sum(axis=1), 1)
            port = np.minimum(ports(cluster).seconds_per_byte[:, 0], _common(cluster, near, inbound=False))
            inside_out = own * port
        return cls(
            floor_s=float(timing.floor_s.min()),
            hidden_s=float(one.hidden_s),
            across_in=across_in,
            inside_in=inside_in,
            across_out=across_out,
            inside_out=inside_out,
            engine=np.maximum.reduce([part[0] for part in one.in_s]),
            drain=np.asarray(one.drain_s)[0],
            everyone=bool(timing.everyone),
        )


def local_flow(costs: Costs, copies: Array, pairs: Array, tokens: Array) -> Flow:
    """Return a flow in which tokens are served at home: ``copies``, ``pairs`` [layers, ranks], ``tokens`` [ranks]."""
    cluster = costs.cluster
    every = np.arange(cluster.ranks)
    shape = (len(copies), cluster.ranks, cluster.ranks)
    rank_copies, by_rank = np.zeros(shape), np.zeros(shape)
    rank_copies[:, every, every], by_rank[:, every, every] = copies, pairs
    by_node = np.zeros((*shape[:2], cluster.nodes))
    by_node[:, every, cluster.node] = copies
    return Flow(
        tokens.astype(np.int64), cluster.node, pairs[:, :, None], by_rank, rank_copies, by_node,
        _forward(cluster, copies),
    )  # fmt: skip


def _forward(cluster: Cluster, kept: Array) -> Array:
    """Return what landing ranks keep to themselves, [layers, ranks, largest node]."""
    node = cluster.node
    position = np.array([np.count_nonzero(node[:rank] == node[rank]) for rank in range(cluster.ranks)])
    out = np.zeros((*kept.shape, int(np.bincount(node).max())))
    out[:, np.arange(cluster.ranks), position] = kept
    return out


def _landing(cluster: Cluster) -> Array:
    """Return whether a rank is where another node's rank lands, bool [ranks, ranks]."""
    out = np.zeros((cluster.ranks, cluster.ranks), bool)
    out[np.arange(cluster.ranks)[:, None], cluster.landing] = True
    return out & ~cluster.same_node


def _probe(cluster: Cluster, pairs: Array) -> Flow:
    """Return a flow of one copy from every rank to the ranks of ``pairs`` [ranks, ranks], which none must forward."""
    copies = pairs[None].astype(np.float64)
    by_node = np.stack([copies[:, :, cluster.node == place].max(axis=2) for place in range(cluster.nodes)], axis=2)
    node = cluster.node
    position = np.array([np.count_nonzero(node[:rank] == node[rank]) for rank in range(cluster.ranks)])
    forward = np.zeros((1, cluster.ranks, int(np.bincount(node).max())))
    for home, served in np.argwhere(pairs):
        forward[0, cluster.landing[home, node[served]], position[served]] += 1
    return Flow(
        np.ones(cluster.ranks, np.int64), node, copies.sum(axis=1)[:, :, None], copies, copies, by_node, forward
    )


def _sent(flow: Flow, direction: Direction) -> Array:
    """Return how many copies of a probe each rank sends, [ranks]."""
    return np.asarray(flow.rank_copies[0].sum(axis=1 if direction == "dispatch" else 0))


def _bytes(costs: Costs, flow: Flow, direction: Direction) -> float:
    """Return the bytes of a copy of a probe."""
    copies = float(flow.rank_copies.sum())
    return costs.transfer(flow, direction).total_bytes / copies if copies else 0.0


def _common(cluster: Cluster, pairs: Array, *, inbound: bool) -> Array:
    """Return seconds per byte [ranks] of the slowest link that all of ``pairs`` into, or out of, a rank pass."""
    out = np.zeros(cluster.ranks)
    for rank in range(cluster.ranks):
        peers = pairs[:, rank] if inbound else pairs[rank]
        if peers.any():
            traffic = np.zeros((cluster.ranks, cluster.ranks))
            traffic[(peers, rank) if inbound else (rank, peers)] = 1.0
            common = cluster.paths.link_bytes(traffic) >= peers.sum() * (1 - 1e-9)
            out[rank] = float((common / cluster.link_bandwidth).max())
    return out
