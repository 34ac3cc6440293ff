"""Small clusters and random batches that the tests of this room share."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np
from hypothesis import strategies as st

from moesim.base.arrays import Array
from moesim.cluster import Cluster
from moesim.costs import Transfer
from moesim.placement import Flow, Placement, dispatch
from moesim.spec import FP8_BLOCK, ModelSpec

SPEC = ModelSpec(
    "small", (0, 1), 2, experts=8, top_k=2, hidden=1024, intermediate=512, weight_bytes=1.0, dispatch_bytes=FP8_BLOCK
)


@lru_cache
def cluster(nodes: int, gpus: int) -> Cluster:
    return Cluster.preset("h100-4x8-rail").edit({"nodes": nodes, "gpus_per_node": gpus})


@lru_cache
def preset(name: str) -> Cluster:
    return Cluster.preset(name)


def contiguous(ranks: int, spec: ModelSpec, layers: int) -> Placement:
    slots = -(-spec.experts // ranks)
    experts = np.full(ranks * slots, -1)
    experts[: spec.experts] = np.arange(spec.experts)
    return Placement(
        np.broadcast_to(experts.reshape(ranks, slots), (layers, ranks, slots)).astype(np.int32), spec.experts
    )


def route(where: Cluster, spec: ModelSpec, routes: Array) -> Flow:
    """Dispatch routes [n, L, K], homes round robin, to contiguous experts."""
    home = np.arange(len(routes), dtype=np.int32) % where.ranks
    return dispatch(routes, home, contiguous(where.ranks, spec, routes.shape[1]), where.node, where.landing)


def random_flow(where: Cluster, spec: ModelSpec, tokens: int, seed: int = 0, groups: int = 0, layers: int = 1) -> Flow:
    """Route tokens per rank uniformly at random; with groups, each token stays on its best nodes."""
    rng = np.random.default_rng(seed)
    score = rng.random((tokens * where.ranks * layers, spec.experts))
    if 0 < groups < where.nodes:
        by_node = score.reshape(len(score), where.nodes, -1)
        best = np.argsort(-by_node.max(axis=2), axis=1)[:, :groups]
        keep = np.zeros((len(score), where.nodes, 1), bool)
        np.put_along_axis(keep[:, :, 0], best, True, axis=1)
        score = np.where(keep, by_node, -1.0).reshape(score.shape)
    routes = np.argpartition(-score, spec.top_k - 1, axis=1)[:, : spec.top_k].astype(np.int16)
    return route(where, spec, routes.reshape(-1, layers, spec.top_k))


def scaled(where: Cluster, factor: float) -> Cluster:
    """Return the cluster with all links that much wider."""
    return dataclasses.replace(where, link_bandwidth=where.link_bandwidth * factor)


def transfer_of(bytes_: Array, **changes: object) -> Transfer:
    """Wrap one leg of bytes [R, R] as a transfer of one layer without floors."""
    leg = np.asarray(bytes_, float)[None]
    ranks = leg.shape[1]
    facts = {
        "legs": (leg,), "messages": np.zeros((1, ranks)), "floor_s": 0.0, "per_message_s": 0.0, "sources": {},
        "senders": leg > 0, "own_bytes": np.zeros((1, ranks, 2)),
    } | changes  # fmt: skip
    return Transfer(**facts)  # type: ignore[arg-type]


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    return cluster(*draw(st.sampled_from([(1, 2), (1, 4), (2, 2), (3, 1), (2, 4)])))


@st.composite
def batches(draw: st.DrawFn) -> tuple[Cluster, Flow]:
    """A cluster and the flow of a random, often skewed, batch in two layers."""
    where = draw(clusters())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    popularity = rng.random(SPEC.experts) ** draw(st.sampled_from([0.0, 1.0, 4.0]))
    score = -rng.exponential(size=(draw(st.integers(1, 40)), 2, SPEC.experts)) / popularity
    routes = np.argsort(-score, axis=2)[:, :, : SPEC.top_k].astype(np.int16)
    return where, route(where, SPEC, routes)


@st.composite
def traffics(draw: st.DrawFn) -> tuple[Cluster, Array]:
    """A cluster and random bytes from rank to rank, many of them zero."""
    where = draw(clusters())
    sizes = st.sampled_from([0.0, 0.0, 1.0, 1e3, 1e6, 2.5e6])
    cells = draw(st.lists(sizes, min_size=where.ranks**2, max_size=where.ranks**2))
    return where, np.array(cells).reshape(where.ranks, -1) * (1 - np.eye(where.ranks))
