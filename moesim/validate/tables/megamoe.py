"""DeepGEMM's fused MegaMoE layer on GB200: time under skew, as a ratio to balanced routing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moesim.costs.fused import fused_layer_s
from moesim.spec import MXFP4, ModelSpec
from moesim.validate.experts import null_s
from moesim.validate.loads import mlp_spec
from moesim.validate.machines import machine, system
from moesim.validate.rows import Case, Row, Skip, role_of

if TYPE_CHECKING:
    from moesim.cluster import Cluster

COLUMNS = (
    "system", "tokens_per_rank", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size", "latency_ms",
    "max_rank_pairs", "active_experts_maxrank", "rank_imb", "bal_active", "max_rank_unique_tokens", "ratio_vs_balanced",
    "distribution",
)  # fmt: skip
MXFP8 = 1.0 + 1 / 32


def megamoe(rows: Sequence[Row]) -> Iterator[Case | Skip]:
    """Score the seconds of balanced rows and the ratio of the others, by tokens per rank."""
    for row in rows:
        table, name = "megamoe_layer_gb200", system(row["system"])
        if name is None:
            yield Skip(table, f"no constants of {row['system']}")
            continue
        tokens, ranks = int(row["tokens_per_rank"]), int(row["moe_ep_size"])
        spec = mlp_spec(
            int(row["hidden_size"]), int(row["inter_size"]), int(row["num_experts"]), int(row["topk"]), MXFP4, MXFP8
        )
        where = machine(name, 1, ranks)
        pairs = float(tokens * spec.top_k)
        balanced = layer_s(where, spec, tokens, pairs, float(row["bal_active"]), min(pairs, float(tokens * ranks)))
        label = f"{row['system']} EP{ranks} {tokens} tok {row['distribution']}"
        if row["distribution"] == "balanced":
            measured = float(row["latency_ms"]) * 1e-3
            null = null_s(name, spec, np.full(round(float(row["bal_active"])), pairs / float(row["bal_active"])))
            yield Case(f"{table} balanced", role_of(row), label, measured, balanced, null)
            continue
        pairs, active, received = (
            float(row[key]) for key in ("max_rank_pairs", "active_experts_maxrank", "max_rank_unique_tokens")
        )
        skewed = layer_s(where, spec, tokens, pairs, active, received)
        size = ">= 1536" if tokens >= 1536 else "<= 128" if tokens <= 128 else "129-1535"
        measured = float(row["ratio_vs_balanced"])
        yield Case(f"{table} ratio {size}", role_of(row), label, measured, skewed / balanced, float(row["rank_imb"]))


def layer_s(where: Cluster, spec: ModelSpec, tokens: int, pairs: float, active: float, received: float) -> float:
    """Return the seconds of the layer on the busiest rank: pairs over as many experts, tokens that reach it."""
    count = max(1, round(active))
    loads = np.zeros((where.ranks, count))
    loads[0] = pairs / count
    reached = np.zeros(where.ranks)
    reached[0] = received
    return float(fused_layer_s(loads, np.full(where.ranks, float(tokens)), reached, where, spec)[0])
