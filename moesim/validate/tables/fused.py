"""Fused MoE kernels of SGLang, vLLM and TensorRT-LLM on Hopper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from moesim.base.arrays import Array
from moesim.costs.roofline import CUTLASS, DEEPGEMM
from moesim.spec import BF16, FP8_BLOCK
from moesim.validate.experts import experts_s, null_s
from moesim.validate.loads import busiest_rank, mlp_spec, power_law
from moesim.validate.machines import system
from moesim.validate.rows import Case, Row, Skip, role_of

COLUMNS = (
    "kernel_source",
    "moe_dtype",
    "num_tokens",
    "hidden_size",
    "inter_size",
    "topk",
    "num_experts",
    "system",
    "model",
    "moe_ep_size",
    "distribution",
    "latency_ms",
)


def fused(rows: Sequence[Row]) -> Iterator[Case | Skip]:
    """Score rows of one rank; with more the collector feeds other ranks' picks too, which some kernels compute."""
    for row in rows:
        name, ranks = system(row["system"]), int(row["moe_ep_size"])
        kernel = "Cutlass" if "cutlass" in row["kernel_source"] else "Triton"
        table = f"fused_moe_hopper {kernel}"
        if name is None:
            yield Skip(table, f"no constants of {row['system']}")
            continue
        if ranks > 1 and kernel == "Triton":
            yield Skip(table, "with several ranks Triton kernels also compute picks of other ranks")
            continue
        fp8 = row["moe_dtype"] == "fp8_block"
        experts, top_k, tokens = (int(row[key]) for key in ("num_experts", "topk", "num_tokens"))
        width = (1.0, FP8_BLOCK) if fp8 else (BF16, BF16)
        spec = mlp_spec(int(row["hidden_size"]), int(row["inter_size"]), experts, top_k, *width)
        draws = _loads(tokens, experts, top_k, ranks, row["distribution"])
        library = CUTLASS if kernel == "Cutlass" else DEEPGEMM
        predicted = float(np.mean([experts_s(name, spec, load, library) for load in draws]))
        null = float(np.mean([null_s(name, spec, load) for load in draws]))
        label = f"{row['system']} {row['kernel_source']} {row['model']} {row['moe_dtype']} EP{ranks}"
        label += f" {tokens} tok {row['distribution']}"
        yield Case(table, role_of(row), label, float(row["latency_ms"]) * 1e-3, predicted, null)


@lru_cache(maxsize=4096)
def _loads(tokens: int, experts: int, top_k: int, ranks: int, law: str) -> tuple[Array, ...]:
    if law == "balanced":
        spread = np.zeros(experts)
        picks = tokens * top_k
        spread[np.linspace(0, experts, min(picks, experts), endpoint=False).astype(int)] = max(1.0, picks / experts)
        return (spread.reshape(ranks, -1)[0],)
    exponent = float(law.rsplit("_", 1)[1])
    laws = (power_law(tokens, experts, top_k, exponent, np.random.default_rng(seed)) for seed in range(3))
    return tuple(busiest_rank(counts, ranks) for counts in laws)
