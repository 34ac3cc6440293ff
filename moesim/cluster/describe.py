"""A cluster in numbers: sizes, tiers, bisection, worst pair."""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.base.arrays import Array
from moesim.cluster.cluster import Cluster
from moesim.cluster.worst import worst_pair

_UNIT = 1e6  # bytes/s; the max-flow works on whole numbers


def describe(cluster: Cluster) -> dict[str, Any]:
    """Return the summary that ``moesim inspect`` prints; keys are stable, values plain Python in SI units."""
    sizes = np.bincount(cluster.node)
    return {
        "name": cluster.name,
        "digest": cluster.digest,
        "ranks": cluster.ranks,
        "nodes": cluster.nodes,
        "ranks_per_node": sorted({int(size) for size in sizes}),
        "devices": {device: cluster.device.count(device) for device in sorted(set(cluster.device))},
        "memory_bytes": float(cluster.memory_bytes.sum()),
        "flops_bf16": float(cluster.flops_bf16.sum()),
        "links": cluster.links,
        "bisection_bandwidth": bisection(cluster),
        "bisection_nominal": bisection(cluster, nominal=True),
        "tiers": tiers(cluster),
        "worst_pair": worst_pair(cluster),
        "paths_bytes": cluster.paths.nbytes,
        "sources": dict(cluster.sources),
        "notes": list(cluster.description.notes or ()),
    }


def bisection(cluster: Cluster, *, nominal: bool = False) -> float:
    """Return the bytes/s that the first half of the nodes can send to the second half, as a maximum flow.

    A single node is cut between its first and second half of ranks, over the links that their paths use: NICs and
    leaves do not help. Of an odd number, the smaller half sends. One rank has no bisection: 0.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import maximum_flow

    if cluster.ranks == 1:
        return 0.0
    half = cluster.node < cluster.nodes // 2 if cluster.nodes > 1 else np.arange(cluster.ranks) < cluster.ranks // 2
    bandwidth = cluster.link_nominal if nominal else cluster.link_bandwidth
    members = cluster.paths.members
    gpus = len(cluster.paths.node)
    idle = np.setdiff1d(np.arange(gpus), members)
    used = ~(np.isin(cluster.link_from, idle) | np.isin(cluster.link_to, idle))
    if cluster.nodes == 1:
        used &= _on_paths(cluster, np.flatnonzero(half), np.flatnonzero(~half))
    source, sink = len(cluster.vertices), len(cluster.vertices) + 1
    capacity = np.rint(bandwidth[used] / _UNIT).astype(np.int64)
    total = capacity.sum()
    begin = np.concatenate([cluster.link_from[used], np.full(half.sum(), source), members[~half]])
    end = np.concatenate([cluster.link_to[used], members[half], np.full((~half).sum(), sink)])
    # whole numbers of 32 bits: very large clusters are counted in coarser units
    coarse = max(1, int(-(-total // 1_000_000_000)))
    weight = np.concatenate([capacity // coarse, np.full(len(members), total // coarse + 1)]).astype(np.int32)
    graph = coo_array((weight, (begin, end)), shape=(sink + 1, sink + 1)).tocsr()
    return float(maximum_flow(graph, source, sink).flow_value) * coarse * _UNIT


def _on_paths(cluster: Cluster, sources: Array, targets: Array) -> Array:
    """Return whether a path from one of these ranks to one of those takes a link, bool [links]."""
    on = np.zeros(cluster.links, bool)
    for s in sources:
        on[cluster.paths.flows(np.full(len(targets), s), targets)[1]] = True
    return on


def tiers(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Return per tier: links, smallest and largest bandwidth of a link, latency, oversubscription.

    ``oversubscription`` is what enters the switches at the lower end of the tier from below, over what leaves them
    upwards; the worst switch; None for the lowest tier.
    """
    names = np.array(cluster.link_tier)
    out = {}
    for tier in dict.fromkeys(cluster.link_tier):
        mine = names == tier
        out[tier] = {
            "links": int(mine.sum()),
            "bandwidth": [float(cluster.link_bandwidth[mine].min()), float(cluster.link_bandwidth[mine].max())],
            "nominal": [float(cluster.link_nominal[mine].min()), float(cluster.link_nominal[mine].max())],
            "total_bandwidth": float(cluster.link_bandwidth[mine].sum()),
            "latency_s": float(cluster.link_latency_s[mine].max()),
            "oversubscription": oversubscription(cluster, tier),
        }
    return out


def oversubscription(cluster: Cluster, tier: str) -> float | None:
    """Return the worst ratio of bandwidth from below to bandwidth of this tier, over the switches below it."""
    gpus = len(cluster.paths.node)
    worst = None
    up: dict[int, float] = {}
    down: dict[int, float] = {}
    names = list(dict.fromkeys(cluster.link_tier))
    for k in range(0, cluster.links, 2):
        lower = int(cluster.link_from[k])  # shapes lay cables bottom up
        if cluster.link_tier[k] == tier and lower >= gpus:
            up[lower] = up.get(lower, 0.0) + float(cluster.link_bandwidth[k])
        elif names.index(cluster.link_tier[k]) < names.index(tier):
            upper = int(cluster.link_to[k])
            down[upper] = down.get(upper, 0.0) + float(cluster.link_bandwidth[k])
    for vertex, above in up.items():
        if vertex in down and above > 0:
            ratio = down[vertex] / above
            worst = ratio if worst is None else max(worst, ratio)
    return worst
