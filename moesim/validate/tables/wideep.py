"""TensorRT-LLM expert compute of the slowest rank, with and without EPLB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from moesim.base.arrays import Array
from moesim.costs.roofline import CUTLASS
from moesim.spec import FP8_BLOCK
from moesim.validate.experts import experts_s, null_s
from moesim.validate.loads import balanced_rank, busiest_rank, mlp_spec, power_law
from moesim.validate.machines import system
from moesim.validate.rows import Case, Row, Skip, role_of
from moesim.validate.tables.nvlink import NVFP4

COLUMNS = (
    "system",
    "moe_dtype",
    "num_tokens",
    "rank0_num_tokens",
    "num_slots",
    "num_experts",
    "moe_ep_size",
    "hidden_size",
    "inter_size",
    "topk",
    "distribution",
    "latency_ms",
)
_DRAWS: Final = 8
_ROUTER_S: Final = 20e-6  # the benchmark times routing of one rank's tokens too; assumed
_TABLE: Final = "wideep_expert_compute"


def wideep(rows: Sequence[Row]) -> Iterator[Case | Skip]:
    """Score seconds of every row, and the ratio of each EPLB row to the row without on as many experts."""
    plain: dict[tuple[str, ...], tuple[float, float, float]] = {}
    ratios: list[tuple[tuple[str, ...], Row, tuple[float, float, float]]] = []
    for row in rows:
        name = system(row["system"])
        if name is None or row["moe_dtype"] not in ("fp8_block", "nvfp4"):
            yield Skip(_TABLE, f"no constants of {row['system']} {row['moe_dtype']}")
            continue
        weight, token = (1.0, FP8_BLOCK) if row["moe_dtype"] == "fp8_block" else (NVFP4, NVFP4)
        experts, top_k, ranks = (int(row[key]) for key in ("num_experts", "topk", "moe_ep_size"))
        spec = mlp_spec(int(row["hidden_size"]), int(row["inter_size"]), experts, top_k, weight, token)
        law, _, eplb = row["distribution"].removeprefix("power_law_").partition("_")
        slots = int(row["num_slots"]) if eplb else 0
        draws = _loads(int(row["num_tokens"]), experts, top_k, ranks, slots, float(law), int(row["rank0_num_tokens"]))
        predicted = _ROUTER_S + float(np.mean([experts_s(name, spec, load, CUTLASS) for load in draws]))
        null = float(np.mean([null_s(name, spec, load) for load in draws]))
        pairs = float(np.mean([load.sum() for load in draws]))
        measured = float(row["latency_ms"]) * 1e-3
        label = f"{row['system']} EP{ranks} {row['num_tokens']} tok {row['num_slots']} slots {row['distribution']}"
        yield Case(_TABLE, role_of(row), label, measured, predicted, null)
        key: tuple[str, ...] = (row["system"], row["num_experts"], row["moe_ep_size"], law, row["num_tokens"])
        if eplb:
            ratios.append((key, row, (measured, predicted, pairs)))
        else:
            plain[key] = (measured, predicted, pairs)
    for key, row, with_eplb in ratios:
        if key not in plain:
            yield Skip(f"{_TABLE} EPLB ratio", "no row without EPLB to compare with")
            continue
        measured, predicted, null = (a / b for a, b in zip(with_eplb, plain[key], strict=True))
        label = f"{row['system']} EP{row['moe_ep_size']} {row['num_tokens']} tok {row['num_slots']} slots law {key[3]}"
        yield Case(f"{_TABLE} EPLB ratio", "holdout", label, measured, predicted, null)


@lru_cache(maxsize=8192)
def _loads(
    tokens: int, experts: int, top_k: int, ranks: int, slots: int, exponent: float, touched: int
) -> tuple[Array, ...]:
    """Return loads of the slowest rank's slots, one array per draw.

    Of twice as many draws those are kept whose tokens on that rank are nearest to what the row prints.
    """
    found = []
    for seed in range(2 * _DRAWS):
        counts = power_law(tokens, experts, top_k, exponent, np.random.default_rng(seed), fill_small=True)
        loads = balanced_rank(counts, ranks, slots) if slots else busiest_rank(counts, ranks)
        found.append((abs(min(loads.sum(), tokens) - touched), seed, loads))
    found.sort(key=lambda item: item[:2])
    return tuple(loads for _, _, loads in found[:_DRAWS])
