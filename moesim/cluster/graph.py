"""The cluster as a networkx graph, for drawing and for checking the compiled paths."""

from __future__ import annotations

import networkx

from moesim.cluster.cluster import Cluster


def graph(cluster: Cluster) -> networkx.MultiGraph:
    """Return vertices by name (kind, node, rank) and cables (tier, bandwidths, latency_s, links).

    ``links`` holds the numbers of the two directed links. The ranks of a sub-cluster keep their names; idle GPUs
    have no ``rank``.
    """
    out = networkx.MultiGraph(name=cluster.name)
    rank_of = {int(member): rank for rank, member in enumerate(cluster.paths.members)}
    gpus = len(cluster.paths.node)
    for number, name in enumerate(cluster.vertices):
        leaf_name = name.rsplit(".", 1)[-1]
        kind = "gpu" if number < gpus else "nic" if leaf_name.startswith("nic") and "." in name else "switch"
        node = name.rpartition(".")[0] if "." in name and not name.startswith("rail") else None
        out.add_node(name, kind=kind, node=node, rank=rank_of.get(number) if number < gpus else None)
    for k in range(0, cluster.links, 2):
        out.add_edge(
            cluster.vertices[cluster.link_from[k]],
            cluster.vertices[cluster.link_to[k]],
            tier=cluster.link_tier[k],
            bandwidth=float(cluster.link_bandwidth[k]),
            nominal=float(cluster.link_nominal[k]),
            latency_s=float(cluster.link_latency_s[k]),
            links=(k, k + 1),
        )
    return out
