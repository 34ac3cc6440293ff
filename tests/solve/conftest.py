"""Small problems for the tests of the solvers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.solve import SOLVERS, Problem
from moesim.solve.problem import complete_options
from moesim.spec import ModelSpec
from moesim.trace import Trace
from moesim.trace.batching import Batches, make_batches


def tiny_spec(layers: int = 2, experts: int = 8, top_k: int = 2, groups: int = 1) -> ModelSpec:
    """A model whose bytes and arithmetic are large enough to matter beside the floors."""
    return ModelSpec(
        name="tiny", layer_ids=tuple(range(layers)), num_hidden_layers=layers, experts=experts, top_k=top_k,
        hidden=4096, intermediate=2048, groups=groups, group_limit=groups,
    )  # fmt: skip


def tiny_trace(spec: ModelSpec, tokens: int, seed: int = 0, skew: float = 1.0) -> Trace:
    """Random routes with popular experts; requests of eight tokens."""
    rng = np.random.default_rng(seed)
    popularity = skew * rng.normal(size=(spec.layers, spec.experts))
    noise = rng.gumbel(size=(tokens, spec.layers, spec.experts))
    routes = np.argsort(-(popularity + noise), axis=2)[:, :, : spec.top_k].astype(np.int16)
    return Trace(spec, routes=routes, request=np.arange(tokens) // 8)


def tiny_cluster(nodes: int = 2, ranks_per_node: int = 2) -> Cluster:
    """The first GPUs of H100 nodes on rails."""
    whole = Cluster.preset("h100-8x8-rail")
    return whole.restrict([8 * n + r for n in range(nodes) for r in range(ranks_per_node)])


@pytest.fixture
def make_problem() -> Callable[..., Problem]:
    """Build a small problem; ``solver`` fills in the options of that solver."""

    def build(
        nodes: int = 2, ranks_per_node: int = 2, slots: int = 3, tokens: int = 512, seed: int = 0, *,
        solver: str = "moesim", options: dict[str, Any] | None = None, policy: str = "nearest",
        transport: str = "hierarchical", skew: float = 1.0, **spec: int,
    ) -> Problem:  # fmt: skip
        model = tiny_spec(**spec)
        cluster = tiny_cluster(nodes, ranks_per_node)
        batches = make_batches(
            tiny_trace(model, tokens, seed, skew), cluster.ranks, tokens_per_rank=tokens // (2 * cluster.ranks)
        )
        costs = Costs.default(model, cluster, transport=transport)
        complete = complete_options(SOLVERS.get(solver), solver, options or {})
        windows = tuple(batches.take(slice(i, i + 1)) for i in range(len(batches)))
        return Problem(model, cluster, windows, slots, costs, policy=policy, seed=seed, options=complete)

    return build


def shared_trace(folder: Path, name: str) -> Trace:
    """One of the public traces with a token per row."""
    if name == "gpt-oss-20b":
        with np.load(folder / "routing/gpt_oss_20b_decode.npz") as data:
            routes, offsets = data["experts"], data["offsets"]
    else:
        with np.load(folder / "routing/deepseek_v2_lite_intent_law.npz") as data:
            routes = np.concatenate([data["intent_experts"], data["law_experts"]])
            law = data["law_offsets"][1:] + len(data["intent_experts"])
            offsets = np.concatenate([data["intent_offsets"], law])
    request = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return Trace(ModelSpec.preset(name), routes=routes.astype(np.int16), request=request)


def steps(trace: Trace, cluster: Cluster, tokens_per_rank: int) -> Batches:
    """Full steps of a trace."""
    return make_batches(trace, cluster.ranks, tokens_per_rank=tokens_per_rank)
