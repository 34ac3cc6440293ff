"""Whole MoE layers of one node: dispatch, experts and combine one after the other, or in one kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from moesim.costs import Costs
from moesim.costs.fused import fused_layer_s
from moesim.spec import FP8_BLOCK, MXFP4
from moesim.validate.exchange import exchange
from moesim.validate.experts import null_s
from moesim.validate.loads import mlp_spec, uniform
from moesim.validate.machines import machine, system
from moesim.validate.rows import Case, Row, Skip, role_of

COLUMNS = (
    "hardware",
    "ep",
    "hidden",
    "inter",
    "experts",
    "topk",
    "tokens_per_rank",
    "impl",
    "total_layer_us",
    "id",
    "model_shape",
)
_TABLE = "moe_layer_end_to_end"


def layers(rows: Sequence[Row]) -> Iterator[Case | Skip]:
    """Score DeepEP with DeepGEMM (normal, low latency) and fused kernels; the null adds up the parts' nulls."""
    for row in rows:
        name = "b200" if row["hardware"].startswith("SM100") else system(row["hardware"])
        impl = row["impl"]
        if name is None:
            yield Skip(_TABLE, f"no constants of {row['hardware']}")
            continue
        if "bf16" in impl or not row["total_layer_us"]:
            yield Skip(_TABLE, f"{impl}: no model of this kernel, or no number")
            continue
        ranks, tokens = int(row["ep"]), int(row["tokens_per_rank"])
        experts, top_k = int(row["experts"]), int(row["topk"])
        four_bit = "FP4" in impl
        width = (MXFP4, 1.0 + 1 / 32) if four_bit else (1.0, FP8_BLOCK)
        spec = mlp_spec(int(row["hidden"]), int(row["inter"]), experts, top_k, *width)
        where = machine(name, 1, ranks)
        flow = uniform(where, experts, top_k, tokens)
        slots = flow.slot_tokens[0]
        null = null_s(name, spec, slots[0])
        if "mega" in impl.lower():
            kind = "fused"
            reached = flow.rank_copies[0].sum(axis=0)
            predicted = float(fused_layer_s(slots, np.full(ranks, float(tokens)), reached, where, spec).max())
        else:
            kind = "DeepEP and DeepGEMM"
            transport = "direct" if "LL" in impl else "hierarchical"
            there, there_null = exchange(where, spec, transport, flow, "dispatch")
            back, back_null = exchange(where, spec, transport, flow, "combine")
            predicted = there + float(Costs.default(spec, where, transport).experts_s(slots).max()) + back
            null += there_null + back_null
        label = f"{row['id']} {row['hardware']} {impl} {row['model_shape']} {tokens} tok"
        yield Case(f"{_TABLE} {kind}", role_of(row), label, float(row["total_layer_us"]) * 1e-6, predicted, null)
