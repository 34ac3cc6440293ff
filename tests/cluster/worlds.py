"""Random topologies and the brute-force paths that the compiled ones must equal."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import networkx
from hypothesis import strategies as st

from moesim.base.errors import InputError
from moesim.cluster import Cluster
from moesim.cluster.build import build
from moesim.cluster.schema import check

GPU = {
    "model": "X", "memory": "80 GB", "flops_bf16": "1 PFLOP/s", "hbm_bandwidth": "3 TB/s",
    "source": "assumed: a test",
}  # fmt: skip


def make(**tables: Any) -> Cluster:
    """Build a cluster from the tables of a file."""
    return build(check({"schema": 1, "name": "world", "gpu": GPU, **tables}, "world.toml"))


def attempt(world: dict[str, Any]) -> tuple[Cluster | None, str]:
    """Build a world; return the cluster, or why there is none."""
    try:
        return make(**world), ""
    except InputError as error:
        return None, str(error)


def tier(bandwidth: str = "100 GB/s", latency: str = "1 us", **more: Any) -> dict[str, Any]:
    return {"bandwidth": bandwidth, "latency": latency, "source": "assumed: a test", **more}


@st.composite
def free_worlds(draw: st.DrawFn, ports: int = 3) -> dict[str, Any]:
    """Ranks, switches and random cables between them; parallel cables happen, and so do islands."""
    nodes, gpus = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    switches = [f"s{i}" for i in range(draw(st.integers(1, 5)))]
    ranks = [f"node{n}.gpu{g}" for n in range(nodes) for g in range(gpus)]
    ends = []
    for rank in ranks:
        ends += [[rank, draw(st.sampled_from(switches))] for _ in range(draw(st.integers(1, ports)))]
    between = st.tuples(st.sampled_from(switches), st.sampled_from(switches)).filter(lambda pair: pair[0] != pair[1])
    if len(switches) > 1:
        ends += [list(pair) for pair in draw(st.lists(between, min_size=len(switches) - 1, max_size=12))]
    if ports > 1 and len(ranks) > 1 and draw(st.booleans()):
        ends.append(list(draw(st.permutations(ranks)))[:2])
    latency = st.sampled_from(["1 us", "1 us", "2 us"])
    links = [tier(latency=draw(latency), ends=pair) for pair in ends]
    return {
        "nodes": nodes, "gpus_per_node": gpus, "switches": switches, "link": links,
        "through_ranks": ports > 1 and draw(st.booleans()),
    }  # fmt: skip


@st.composite
def shaped_worlds(draw: st.DrawFn) -> dict[str, Any]:
    """The common shapes with random sizes."""
    gpus = draw(st.sampled_from([1, 2, 4]))
    tiers: dict[str, Any] = {"node": tier(latency="0.5 us")}
    nodes = draw(st.integers(1, 5))
    if nodes > 1 or draw(st.booleans()):
        kind = draw(st.sampled_from(["rail", "leaf"]))
        tiers[kind] = tier("50 GB/s", nodes_per_leaf=draw(st.sampled_from([None, 1, 2])))
        if tiers[kind]["nodes_per_leaf"] is None:
            del tiers[kind]["nodes_per_leaf"]
        tiers["spine"] = {
            "switches": draw(st.integers(1, 3)), "oversubscription": draw(st.sampled_from([1.0, 2.0])),
            "latency": "1 us", "source": "assumed: a test",
        }  # fmt: skip
        if draw(st.booleans()):
            tiers["pcie"] = tier("60 GB/s")
            tiers[kind]["gpus_per_nic"] = draw(st.sampled_from([1, 2]))
            tiers["node"]["nics_on"] = draw(st.sampled_from(["gpu", "switch"]))
    return {"nodes": nodes, "gpus_per_node": gpus, "tier": tiers}


def brute_force(cluster: Cluster, s: int, t: int) -> dict[int, float] | None:
    """Return link -> share of a rank pair by enumerating all shortest paths; None without any."""
    graph = networkx.MultiDiGraph()
    graph.add_nodes_from(range(len(cluster.vertices)))
    ranks = len(cluster.paths.node)
    forwards = cluster.description.through_ranks
    for link in range(cluster.links):
        a, b = int(cluster.link_from[link]), int(cluster.link_to[link])
        if forwards or all(end >= ranks or end in (s, t) for end in (a, b)):
            cost = (1 << 40) + round(cluster.link_latency_s[link] * 1e12)
            graph.add_edge(a, b, key=link, cost=cost)
    if not networkx.has_path(graph, s, t):
        return None
    hops: dict[int, set[int]] = defaultdict(set)
    for path in networkx.all_shortest_paths(graph, s, t, weight="cost"):
        for a, b in pairwise(path):
            cheapest = min(edge["cost"] for edge in graph[a][b].values())
            hops[a] |= {key for key, edge in graph[a][b].items() if edge["cost"] == cheapest}
    shares: dict[int, float] = defaultdict(float)
    waiting = [(s, 1.0)]
    while waiting:
        vertex, part = waiting.pop()
        for link in hops[vertex] if vertex != t else ():
            shares[link] += part / len(hops[vertex])
            waiting.append((int(cluster.link_to[link]), part / len(hops[vertex])))
    return dict(shares)
