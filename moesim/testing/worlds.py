"""Small worlds in which plug-ins are judged: one node, two nodes, uneven nodes; redundant, full and empty slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np

from moesim.base.arrays import Array
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.placement import EMPTY, Flow, Placement, dispatch
from moesim.solve.problem import Problem
from moesim.spec import ModelSpec
from moesim.trace import Batches, make_batches
from moesim.trace.synthetic import router


@cache
def group_named(name: str) -> Cluster:
    """Return four ranks of a node, three on each of two, or three and two."""
    wide = Cluster.preset("h100-4x8-rail")
    ranks = {"one node": range(4), "two nodes": (0, 1, 2, 8, 9, 10), "uneven nodes": (0, 1, 2, 8, 9)}
    return wide.restrict(list(ranks[name]))


@cache
def steps_for(ranks: int, experts: int) -> Batches:
    """Return three steps of a synthetic trace of three layers."""
    spec = ModelSpec(
        name=f"judge-{experts}", layer_ids=(1, 2, 3), num_hidden_layers=4, experts=experts, top_k=3, hidden=512,
        intermediate=256, groups=2, group_limit=2,
    )  # fmt: skip
    trace = router(spec, 2400, seed=5, request_tokens=60)
    return make_batches(trace, ranks, tokens_per_rank=64, seed=1, max_steps=3)


def problems(deadline_s: float) -> Iterator[tuple[str, Problem]]:
    """Yield problems without room to spare, with copies, with slots that stay empty."""
    for where, experts, slots in (
        ("one node", 8, 2),
        ("one node", 8, 3),
        ("two nodes", 12, 2),
        ("two nodes", 12, 4),
        ("uneven nodes", 10, 3),
        ("one node", 6, 8),
    ):
        cluster = group_named(where)
        batches = steps_for(cluster.ranks, experts)
        spec = batches.trace.spec
        costs = Costs.default(spec, cluster)
        case = f"{where}, {experts} experts in {cluster.ranks} x {slots} slots"
        yield case, Problem(
            spec=spec, cluster=cluster, batches=(batches,), slots_per_rank=slots, costs=costs, seed=7,
            deadline_s=deadline_s,
        )  # fmt: skip


def worlds() -> Iterator[tuple[str, Cluster, Batches, Placement]]:
    """Yield clusters with steps and a placement."""
    for where, experts, slots in (("one node", 8, 3), ("two nodes", 12, 3), ("uneven nodes", 10, 4)):
        cluster = group_named(where)
        batches = steps_for(cluster.ranks, experts)
        yield where, cluster, batches, some_placement(batches.trace.spec, cluster.ranks, slots)


def some_placement(spec: ModelSpec, ranks: int, slots: int) -> Placement:
    """Return a placement with replicas, and a hole in its last slot."""
    rng = np.random.default_rng(11)
    experts = np.full((spec.layers, ranks, slots), EMPTY, np.int32)
    for layer in range(spec.layers):
        order = rng.permutation(spec.experts)
        # dealing in turn never gives a rank the same expert twice while slots <= experts
        for place in range(ranks * slots - 1):
            experts[layer, place // slots, place % slots] = order[place % spec.experts]
    return Placement(experts, spec.experts).for_model(spec)


def placements() -> Iterator[tuple[Placement, ModelSpec]]:
    """Yield a placement with empty slots and a full one."""
    spec = steps_for(4, 8).trace.spec
    holed = some_placement(spec, 4, 3)
    yield holed, spec
    full = holed.experts.copy()
    for layer in range(spec.layers):
        present = set(full[layer, -1].tolist())
        full[layer, -1, -1] = min(set(range(spec.experts)) - present)
    yield Placement(full, spec.experts).for_model(spec), spec


def flows() -> Iterator[tuple[str, Cluster, ModelSpec, Flow]]:
    """Yield clusters with the flow of a step."""
    for where, cluster, batches, placement in worlds():
        flow = dispatch(batches.routes(0), batches.homes(0), placement, cluster.node, cluster.landing)
        yield where, cluster, batches.trace.spec, flow


def without_tokens(flow: Flow) -> Flow:
    """Return the same flow with no tokens."""
    nothing: dict[str, Array] = {
        name: np.zeros_like(getattr(flow, name))
        for name in ("tokens", "slot_tokens", "pairs", "rank_copies", "node_copies", "forward_local")
    }
    return replace(flow, **nothing)
