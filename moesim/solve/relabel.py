"""Which GPU takes which part of a planned placement, so that the fewest experts move (OR-Tools, linear assignment).

Only GPUs that the costs cannot tell apart are exchanged: ranks of one node that are alike, and whole nodes where the
network between all of them is alike too. Layers are independent, so each is relabelled on its own.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from moesim.base.arrays import Array
from moesim.cluster import Cluster
from moesim.costs.ports import ports
from moesim.placement import EMPTY


def relabel(experts: Array, was: Array, cluster: Cluster, room: Array | None = None) -> Array:
    """Return the placement with ranks renumbered in every layer so that the fewest experts must be received.

    Parameters
    ----------
    experts
        Planned placement, int [layers, ranks, slots].
    was
        Who holds what now, bool [layers, experts, ranks].
    room
        Slots that each rank may fill, int [layers, ranks]; ranks of different room are not exchanged.
    """
    out = experts.copy()
    kinds = rank_kinds(cluster)
    alike = nodes_alike(cluster)
    for layer in range(len(experts)):
        kind = kinds if room is None else np.unique(np.stack([kinds, room[layer]]), axis=1, return_inverse=True)[1]
        filled = experts[layer] != EMPTY
        # experts of planned rank p that rank q lacks
        lacks = np.stack(
            [(~was[layer][held[full]]).sum(axis=0) for held, full in zip(experts[layer], filled, strict=True)]
        )
        out[layer] = experts[layer][_order(lacks, kind.ravel(), cluster.node, alike)]
    return out


def _order(lacks: Array, kind: Array, node: Array, alike: bool) -> Array:
    """Return the planned rank that every rank becomes, int64 [ranks]."""
    members = [np.flatnonzero(node == n) for n in range(int(node.max()) + 1)]
    parts = {}
    for there, planned in enumerate(members):
        for here, ranks in enumerate(members):
            fits = here == there or (alike and sorted(kind[planned]) == sorted(kind[ranks]))
            if fits:
                parts[there, here] = _within(lacks[np.ix_(planned, ranks)], kind[planned], kind[ranks])
    total = sum(float(lacks.max(initial=0)) * len(ranks) for ranks in members) + 1
    cost = np.full((len(members), len(members)), total)
    for pair, (_, moves) in parts.items():
        cost[pair] = moves
    where = assign(cost)
    order = np.empty(len(node), np.int64)
    for there, here in enumerate(where.tolist()):
        order[members[here][parts[there, here][0]]] = members[there]
    return order


def _within(lacks: Array, planned: Array, ranks: Array) -> tuple[Array, float]:
    """Return the place of every planned rank in its new node, and the experts to receive."""
    total = float(lacks.sum()) + 1
    where = assign(np.where(planned[:, None] == ranks[None, :], lacks, total))
    return where, float(lacks[np.arange(len(where)), where].sum())


def assign(cost: Array) -> Array:
    """Return the column of every row, int64 [rows], that together cost least; ``cost`` whole numbers [rows, rows]."""
    from ortools.graph.python import linear_sum_assignment

    problem = linear_sum_assignment.SimpleLinearSumAssignment()
    problem.add_arcs_with_cost(*_arcs(*cost.shape), cost.ravel().astype(np.int64))
    problem.solve()
    return np.array([problem.right_mate(row) for row in range(len(cost))], np.int64)


@cache
def _arcs(rows: int, columns: int) -> tuple[Array, Array]:
    """Return row and column of every cell, int32 [rows * columns] each."""
    row, column = np.indices((rows, columns), np.int32)
    return row.ravel(), column.ravel()


def rank_kinds(cluster: Cluster) -> Array:
    """Return a number for every rank, int64 [ranks], equal for ranks of one node that are alike in all they cost."""
    facts = np.column_stack(
        [cluster.memory_bytes, cluster.flops_bf16, cluster.flops_fp8, cluster.hbm_bandwidth, cluster.speed,
         ports(cluster).seconds_per_byte, np.unique(cluster.device, return_inverse=True)[1]]
    )  # fmt: skip
    return np.asarray(np.unique(facts.round(18), axis=0, return_inverse=True)[1].ravel())


def nodes_alike(cluster: Cluster) -> bool:
    """Return whether the paths between any two nodes are alike: bandwidth of a path alone, and its latency."""
    nodes = cluster.nodes
    if nodes == 1:
        return False
    first = np.array([int(cluster.rank_of_node(n)[0]) for n in range(nodes)])
    source, target = (index.ravel() for index in np.indices((nodes, nodes)))
    apart = source != target
    origin = first[source[apart]]
    landing = cluster.landing[origin, target[apart]]
    alone = cluster.paths.alone_s(1 / cluster.link_bandwidth, origin, landing)
    latency = ports(cluster).latency_s[origin, landing]
    return bool(np.ptp(alone) <= 1e-9 * alone.max() and np.ptp(latency) <= 1e-9 * max(latency.max(), 1e-12))
