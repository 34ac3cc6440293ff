"""The slowest pair of ranks of an idle network, found among representatives of equal ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from moesim.base.arrays import Array
from moesim.cluster.cluster import Cluster

_AT_ONCE = 1_000_000  # pairs


def worst_pair(cluster: Cluster) -> dict[str, Any] | None:
    """Return the pair with the lowest bandwidth on an idle network; among equals the one with the highest latency.

    Inside nodes every pair is looked at. Across nodes two ranks are equal if their ways into the fabric are equal link
    by link and run through the same shared switches: then two ranks of each kind, on different nodes, stand for all.
    """
    if cluster.ranks == 1:
        return None
    time_s: Array = 1.0 / cluster.link_bandwidth
    found: tuple[float, float, int, int] | None = None
    types = np.zeros(cluster.nodes, np.int64)
    if cluster.paths.relay.size:
        types = _node_types(cluster, time_s)
    for s, t in _pairs(cluster, types):
        alone, latency = cluster.paths.alone_s(time_s, s, t), cluster.paths.latency_s(s, t)
        slow = np.flatnonzero(alone == alone.max())
        slow = slow[latency[slow] == latency[slow].max()]
        best = slow[np.lexsort((t[slow], s[slow]))[0]]
        entry = (float(alone[best]), float(latency[best]), int(s[best]), int(t[best]))
        if found is None or (entry[:2], -entry[2], -entry[3]) > (found[:2], -found[2], -found[3]):
            found = entry
    if found is None:
        return None
    alone_s, latency_s, source, target = found
    names = [cluster.rank_names[rank] for rank in (source, target)]
    return {"source": source, "target": target, "names": names, "bandwidth": 1.0 / alone_s, "latency_s": latency_s}


def _pairs(cluster: Cluster, types: Array) -> Iterator[tuple[Array, Array]]:
    """Yield (sources, targets) in pieces: all pairs inside nodes, pairs of representatives across nodes."""
    order = np.argsort(cluster.node, kind="stable")
    for local in np.split(order, np.flatnonzero(np.diff(cluster.node[order])) + 1):
        yield from _product(local, local, cluster, inside=True)
    if cluster.nodes > 1:
        chosen = _representatives(cluster, types)
        yield from _product(chosen, chosen, cluster, inside=False)


def _product(sources: Array, targets: Array, cluster: Cluster, *, inside: bool) -> Iterator[tuple[Array, Array]]:
    step = max(1, _AT_ONCE // len(targets))
    for first in range(0, len(sources), step):
        some = sources[first : first + step]
        s, t = np.repeat(some, len(targets)), np.tile(targets, len(some))
        keep = (s != t) if inside else cluster.node[s] != cluster.node[t]
        if keep.any():
            yield s[keep], t[keep]


def _representatives(cluster: Cluster, types: Array) -> Array:
    """Return two ranks of each kind that paths across nodes can tell apart, on different nodes where there are such."""
    first: dict[Any, tuple[int, int]] = {}
    chosen: list[int] = []
    for rank, key in enumerate(_kinds(cluster)):
        node = int(cluster.node[rank])
        kind = (key, int(types[node]), int(cluster.local[rank]), int(cluster.rail[rank])) if types.any() else key
        count, home = first.get(kind, (0, -1))
        if count < 2 and node != home:
            first[kind] = count + 1, node
            chosen.append(rank)
    return np.array(chosen)


def _kinds(cluster: Cluster) -> list[tuple[Any, ...]]:
    """Return per rank its way into the fabric: attachment point; rates, latency and shared switch of each link."""
    paths = cluster.paths
    compiled = len(paths.node)
    start = paths.chain_start[compiled:]
    used, home = paths.chain_vertex[start[0] : start[-1]], np.repeat(paths.node, np.diff(start))
    low, high = np.full(len(cluster.vertices), compiled), np.full(len(cluster.vertices), -1)
    np.minimum.at(low, used, home)
    np.maximum.at(high, used, home)
    rate, latency, vertex = cluster.link_bandwidth, cluster.link_latency_s, paths.chain_vertex
    out: list[tuple[Any, ...]] = []
    for member in paths.members:
        row = compiled + int(member)
        steps = []
        for k in range(paths.chain_start[row], paths.chain_start[row + 1]):
            up = int(paths.chain_link[k])
            shared = int(vertex[k]) if low[vertex[k]] < high[vertex[k]] else -1  # ranks of one node do not count
            steps.append((float(rate[up]), float(rate[up ^ 1]), float(latency[up]), shared))
        out.append((int(paths.attach[1, member]), *steps))
    return out


def _node_types(cluster: Cluster, time_s: Array) -> Array:
    """Return a number per node, from 1; equal where the hops to relays inside are equal. int64 [nodes]."""
    kinds = _kinds(cluster)
    seen: dict[Any, int] = {}
    out = np.zeros(cluster.nodes, np.int64)
    for node in range(cluster.nodes):
        local = np.flatnonzero(cluster.node == node)
        s, t = np.repeat(local, len(local)), np.tile(local, len(local))
        within = cluster.paths.alone_s(time_s, s, t).tobytes(), cluster.paths.latency_s(s, t).tobytes()
        members = tuple((kinds[r], int(cluster.local[r]), int(cluster.rail[r])) for r in local)
        out[node] = seen.setdefault((within, members), len(seen) + 1)
    return out
