"""One-sided and two-sided all-to-all of TensorRT-LLM inside one NVLink domain of GB200."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moesim.costs.types import Direction
from moesim.spec import BF16
from moesim.validate.exchange import exchange
from moesim.validate.loads import balanced, mlp_spec
from moesim.validate.machines import machine
from moesim.validate.rows import Case, Row, Skip, role_of

COLUMNS = (
    "op_name",
    "kernel_source",
    "moe_dtype",
    "num_tokens",
    "hidden_size",
    "topk",
    "num_experts",
    "moe_ep_size",
    "latency_us",
)
NVFP4 = 0.5 + 1 / 16
"""Bytes per element of NVFP4: half a byte and one fp8 scale per 16 elements."""
BYTES = {"bfloat16": BF16, "bf16": BF16, "fp8": 1.0, "mxfp8": 1.0 + 1 / 32, "nvfp4": NVFP4}


def one_sided(rows: Sequence[Row]) -> Iterator[Case | Skip]:
    """Score one-sided rows; two-sided ones pack and unpack through a FIFO that no transport models."""
    for row in rows:
        table = "alltoall_gb200_trtllm"
        if row["kernel_source"] != "NVLinkOneSided":
            yield Skip(table, f"{row['kernel_source']}: packed through a FIFO, no transport models it")
            continue
        if row.get("note"):
            yield Skip(table, row["note"])
            continue
        side: Direction = "dispatch" if row["op_name"].endswith("dispatch") else "combine"
        ranks, tokens, top_k = (int(row[key]) for key in ("moe_ep_size", "num_tokens", "topk"))
        where = machine("gb200", 1, ranks)
        experts = int(row["num_experts"])
        spec = mlp_spec(int(row["hidden_size"]), 2048, experts, top_k, 0.5, BYTES[row["moe_dtype"]])
        flow = balanced(where, experts, top_k, tokens)
        predicted, null = exchange(where, spec, "nvlink", flow, side)
        label = f"EP{ranks} {side} {tokens} tok {row['moe_dtype']}"
        yield Case(table, role_of(row), label, float(row["latency_us"]) * 1e-6, predicted, null)
