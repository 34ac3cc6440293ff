"""Small random models, clusters, placements and traffic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from moesim.cluster import Cluster
from moesim.placement import Placement
from moesim.spec import Attention, ModelSpec
from moesim.trace import DECODE, PREFILL, Batches, Trace, make_batches


@cache
def cluster(nodes: int = 2, gpus: int = 2) -> Cluster:
    """Return H100 nodes with one rail per GPU."""
    return Cluster.preset("h100-4x8-rail").edit({"nodes": nodes, "gpus_per_node": gpus})


def spec(layers: int = 2, experts: int = 6, top_k: int = 2) -> ModelSpec:
    """Return a model large enough for its bytes to matter."""
    return ModelSpec(
        name="small",
        layer_ids=tuple(range(1, layers + 1)),
        num_hidden_layers=layers + 1,
        experts=experts,
        top_k=top_k,
        hidden=4096,
        intermediate=1024,
        shared_experts=1,
        shared_intermediate=1024,
        attention=Attention(heads=32, kv_heads=8, head_dim=128),
    )


def placement(rng: np.random.Generator, layers: int, ranks: int, experts: int, replicas: int = 0) -> Placement:
    """Return every expert once at random, plus some copies on other ranks; slots that are left are empty."""
    slots = -(-(experts + replicas) // ranks)
    table = np.full((layers, ranks, slots), -1)
    for layer in range(layers):
        seats = rng.permutation(np.arange(ranks * slots) % ranks)[:experts]
        for expert, rank in zip(rng.permutation(experts), seats, strict=True):
            table[layer, rank, np.flatnonzero(table[layer, rank] < 0)[0]] = expert
        for expert in rng.integers(0, experts, replicas):
            room = [r for r in range(ranks) if (table[layer, r] < 0).any() and expert not in table[layer, r]]
            if room:
                rank = int(rng.choice(room))
                table[layer, rank, np.flatnonzero(table[layer, rank] < 0)[0]] = expert
    return Placement(table, experts)


def trace(rng: np.random.Generator, model: ModelSpec, tokens: int, phase: int = PREFILL, request: int = 8) -> Trace:
    """Return skewed traffic; a tenth of the picks is dropped."""
    liking = rng.gumbel(size=(model.layers, model.experts)) * 1.5
    noise = rng.gumbel(size=(tokens, model.layers, model.experts))
    routes = np.argsort(-(liking + noise), axis=-1)[..., : model.top_k].astype(np.int16)
    routes[rng.random(routes.shape) < 0.1] = -1
    return Trace(
        spec=model,
        routes=routes,
        request=np.arange(tokens) // request,
        phase=np.full(tokens, phase, dtype=np.uint8),
        origin={"by": "a test", "seed": int(rng.integers(2**31))},
    )


@dataclass
class World:
    cluster: Cluster
    placement: Placement
    trace: Trace
    batches: Batches


def world(
    seed: int, *, nodes: int = 2, gpus: int = 2, replicas: int = 3, tokens_per_rank: int = 24, steps: int = 2
) -> World:
    """Return everything that a simulation needs."""
    rng = np.random.default_rng(seed)
    model, ranks = spec(), nodes * gpus
    phase = int(rng.choice([PREFILL, DECODE]))
    recorded = trace(rng, model, ranks * tokens_per_rank * steps, phase)
    return World(
        cluster(nodes, gpus),
        placement(rng, model.layers, ranks, model.experts, replicas),
        recorded,
        make_batches(recorded, ranks, tokens_per_rank=tokens_per_rank, seed=seed),
    )
