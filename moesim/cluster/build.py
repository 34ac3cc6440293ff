"""From a checked description to a compiled cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.base.units import parse
from moesim.cluster.cluster import Cluster
from moesim.cluster.compile import compile_paths
from moesim.cluster.schema import Description
from moesim.cluster.shapes import sources, wire


def build(description: Description) -> Cluster:
    """Wire and compile a description.

    Raises
    ------
    InputError
        If names do not resolve or ranks are not connected.
    """
    if description.ranks is not None:
        return restricted(build(description.model_copy(update={"ranks": None})), description.ranks)
    ranks, wiring = wire(description)
    local = np.array([rank.local for rank in ranks], np.int32)
    rail = np.array([rank.rail for rank in ranks], np.int32)
    landing = landing_ranks(wiring.node, local, rail)
    rails = description.tier.rail
    pxn = rails is not None and rails.pxn and wiring.node.max() > 0

    def facts(field: str, kind: str) -> Array:
        return np.array([parse(getattr(rank.gpu, field), kind, f"gpu.{field}") for rank in ranks])

    bf16 = facts("flops_bf16", "flops")
    fp8 = np.array(
        [flops if (text := rank.gpu.flops_fp8) is None else parse(text, "flops", "gpu.flops_fp8")
         for rank, flops in zip(ranks, bf16, strict=True)]
    )  # fmt: skip
    return Cluster(
        name=description.name,
        node=wiring.node,
        local=local,
        rail=rail,
        device=tuple(rank.gpu.model for rank in ranks),
        memory_bytes=facts("memory", "bytes"),
        flops_bf16=bf16,
        flops_fp8=fp8,
        hbm_bandwidth=facts("hbm_bandwidth", "bandwidth"),
        speed=np.array([rank.gpu.speed for rank in ranks]),
        vertices=wiring.vertices,
        link_name=wiring.link_names(),
        link_tier=tuple(tier for tier in wiring.tier for _ in range(2)),
        link_from=wiring.link_from,
        link_to=wiring.link_to,
        link_bandwidth=np.repeat(wiring.bandwidth, 2),
        link_nominal=np.repeat(wiring.nominal, 2),
        link_latency_s=np.repeat(wiring.latency_s, 2),
        landing=landing,
        sources=sources(description),
        paths=compile_paths(wiring, relay=landing if pxn else None),
        description=description,
    )


def landing_ranks(node: Array, local: Array, rail: Array) -> Array:
    """Return the rank of node m where traffic of rank r lands, int32 [ranks, nodes].

    The GPU with the sender's place in its node if it is on the sender's rail, else the first on that rail, else
    (nodes of other sizes) the one whose place is the sender's modulo the node's size.
    """
    nodes = int(node.max()) + 1
    out = np.empty((len(node), nodes), np.int32)
    for m in range(nodes):
        there = np.flatnonzero(node == m)
        place = np.full(int(local.max()) + 1, -1)
        place[local[there]] = there
        first = np.full(int(rail.max()) + 1, -1)
        first[rail[there[::-1]]] = there[::-1]
        same_place, same_rail = place[local], first[rail]
        fits = (same_place >= 0) & (rail[same_place] == rail)
        out[:, m] = np.where(fits, same_place, np.where(same_rail >= 0, same_rail, there[local % len(there)]))
        out[there, m] = there
    return out


def restricted(cluster: Cluster, ranks: Sequence[int] | Array) -> Cluster:
    """Return the sub-cluster of these ranks, in this order; the paths share the tables of the whole."""
    chosen = np.asarray(ranks)
    if chosen.ndim != 1 or not len(chosen) or not np.issubdtype(chosen.dtype, np.integer):
        raise InputError(f"cluster {cluster.name}: expected a list of at least one rank, got {ranks!r}")
    if chosen.min() < 0 or chosen.max() >= cluster.ranks:
        raise InputError(
            f"cluster {cluster.name}: rank {int(chosen.min() if chosen.min() < 0 else chosen.max())} does not exist; "
            f"it has ranks 0 to {cluster.ranks - 1}"
        )
    unique, first = np.unique(chosen, return_index=True)
    if len(unique) < len(chosen):
        twice = np.delete(chosen, first)[0]
        raise InputError(f"cluster {cluster.name}: rank {int(twice)} comes twice; name every rank once")
    # nodes are numbered in the order in which the group first meets them
    old, appear, inverse = np.unique(cluster.node[chosen], return_index=True, return_inverse=True)
    number = np.empty(len(old), np.int32)
    number[np.argsort(appear)] = np.arange(len(old))
    node = number[inverse]
    local, rail = cluster.local[chosen], cluster.rail[chosen]
    before = np.arange(cluster.ranks) if cluster.description.ranks is None else np.array(cluster.description.ranks)
    whole = cluster.description.ranks is None and np.array_equal(chosen, np.arange(cluster.ranks))
    return replace(
        cluster,
        node=node,
        local=local,
        rail=rail,
        device=tuple(cluster.device[r] for r in chosen),
        memory_bytes=cluster.memory_bytes[chosen],
        flops_bf16=cluster.flops_bf16[chosen],
        flops_fp8=cluster.flops_fp8[chosen],
        hbm_bandwidth=cluster.hbm_bandwidth[chosen],
        speed=cluster.speed[chosen],
        landing=landing_ranks(node, local, rail),
        paths=replace(cluster.paths, members=cluster.paths.members[chosen]),
        description=cluster.description.model_copy(
            update={"ranks": None if whole else [int(r) for r in before[chosen]]}
        ),
    )
