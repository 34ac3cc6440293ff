"""DeepGEMM's fused MegaMoE layer on GB200: time under skew, as a ratio to balanced routing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from moesim.base.arrays import Array
from moesim.spec import MXFP4
from moesim.validate.experts import experts_s
from moesim.validate.loads import mlp_spec
from moesim.validate.machines import system
from moesim.validate.rows import Case, Row, Skip, role_of

COLUMNS = (
    "system", "tokens_per_rank", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size", "latency_ms",
    "max_rank_pairs", "active_experts_maxrank", "rank_imb", "bal_active", "balanced_ms", "ratio_vs_balanced",
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
        balanced = layer_s(name, spec, tokens, float(tokens * spec.top_k), float(row["bal_active"]))
        label = f"{row['system']} EP{ranks} {tokens} tok {row['distribution']}"
        if row["distribution"] == "balanced":
            measured = float(row["latency_ms"]) * 1e-3
            yield Case(f"{table} balanced", role_of(row), label, measured, balanced, balanced)
            continue
        skewed = layer_s(name, spec, tokens, float(row["max_rank_pairs"]), float(row["active_experts_maxrank"]))
        size = ">= 1536" if tokens >= 1536 else "<= 128" if tokens <= 128 else "129-1535"
        measured = float(row["ratio_vs_balanced"])
        yield Case(f"{table} ratio {size}", role_of(row), label, measured, skewed / balanced, float(row["rank_imb"]))


def layer_s(name: str, spec, tokens: int, pairs: float, active: float) -> float:  # type: ignore[no-untyped-def]
    """Return the seconds of the layer whose busiest rank has these pairs over as many experts."""
    loads: Array = np.full(max(1, round(active)), pairs / max(1, round(active)))
    return experts_s(name, spec, loads)
