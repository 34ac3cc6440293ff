"""Grouped GEMMs: the rows of the DeepGEMM README, and SGLang's DeepEP expert layer as NVIDIA's collector ran it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from moesim.base.arrays import Array
from moesim.costs.roofline import Device, gemm_s, together
from moesim.spec import BF16, FP8_BLOCK
from moesim.validate.experts import experts_s, null_s
from moesim.validate.loads import busiest_rank, mlp_spec, power_law
from moesim.validate.machines import machine, system
from moesim.validate.rows import Case, Row, Skip, role_of

README_COLUMNS = ("hardware", "kernel", "groups", "m_per_group", "n", "k", "derived_latency_us", "id", "role")
GROUPED_COLUMNS = (
    "system",
    "global_num_tokens",
    "topk",
    "num_experts",
    "moe_ep_size",
    "distribution",
    "phase",
    "hidden_size",
    "inter_size",
    "latency_ms",
)
_DRAWS: Final = 5  # the collector averages over five draws
_BLOCK: Final = 128  # rows of a block that contiguous grouped GEMMs give to one expert
_HOST_S: Final = {"h100": 0.39e-3, "h200": 0.38e-3, "b200": 0.305e-3, "gb200": 0.5e-3}
"""Least time of the collector's context benchmark, eager launches on its host: uniform rows, few tokens a rank."""
_AHEAD_S: Final = 0.18e-3
"""What of it the device does not hide: uniform rows of H100 EP32."""


def readme(rows: Sequence[Row]) -> Iterator[Case | Skip]:
    """Score dense and grouped GEMMs in fp8."""
    device = Device.of(machine("h800", 1, 1), fp8=True)
    for row in rows:
        if row["role"] == "superseded":
            yield Skip("deepgemm_readme", "superseded by a later commit's numbers")
            continue
        groups, m, n, depth = (int(row[key]) for key in ("groups", "m_per_group", "n", "k"))
        loads = np.full((1, groups), float(m))
        memory = (groups * n * depth + groups * m * (depth + BF16 * n)) / device.hbm
        predicted = float(together(gemm_s(loads, device, n, depth), memory)[0])
        null = max(2.0 * groups * m * n * depth / float(device.flops[0]), float(memory[0]))
        kind = "grouped" if "grouped" in row["kernel"] else "dense"
        label = f"{row['id']} {row['kernel']} {groups} x {m} N {n} K {depth}"
        measured = float(row["derived_latency_us"]) * 1e-6
        yield Case(f"deepgemm_readme {kind}", role_of(row), label, measured, predicted, null)


def grouped(rows: Sequence[Row]) -> Iterator[Case | Skip]:
    """Score the expert layer of one rank; phases apart, since their kernels differ."""
    for row in rows:
        table = f"grouped_gemm_deepgemm {row['phase']}"
        name = system(row["system"])
        if name is None:
            yield Skip(table, f"no constants of {row['system']}")
            continue
        experts, top_k, tokens = int(row["num_experts"]), int(row["topk"]), int(row["global_num_tokens"])
        ranks = int(row["moe_ep_size"])
        spec = mlp_spec(int(row["hidden_size"]), int(row["inter_size"]), experts, top_k, 1.0, FP8_BLOCK)
        context = row["phase"] == "context"
        times, nulls = [], []
        for loads in _loads(row["distribution"], tokens, experts, top_k, ranks, context):
            seconds = experts_s(name, spec, loads)
            if context:
                seconds = max(_HOST_S.get(name, 0.39e-3), seconds + _harness_s(name, tokens, spec.hidden))
            times.append(seconds)
            nulls.append(null_s(name, spec, loads))
        label = f"{row['system']} {row['phase']} EP{ranks} {tokens} tok {row['distribution']}"
        measured = float(row["latency_ms"]) * 1e-3
        yield Case(table, role_of(row), label, measured, float(np.mean(times)), float(np.mean(nulls)))


def _loads(law: str, tokens: int, experts: int, top_k: int, ranks: int, context: bool) -> list[Array]:
    """Return tokens per local expert of the busiest rank, one array per draw."""
    mean = tokens * top_k / experts
    if law == "uniform":
        local = experts // ranks
        if mean < 1:
            return [np.ones(max(1, round(mean * local)))]
        if not context or mean >= _BLOCK:
            return [np.full(local, np.ceil(mean))]
        # the context benchmark leaves uniform loads unpadded, so that a block of 128 rows reads one expert's weights
        rows = int(mean) * local
        blocks = -(-rows // _BLOCK)
        return [np.full(min(blocks, local), rows / min(blocks, local))]
    exponent = float(law.rsplit("_", 1)[1])
    drawn = [
        busiest_rank(power_law(tokens, experts, top_k, exponent, np.random.default_rng(seed)), ranks)
        for seed in range(_DRAWS)
    ]
    # padded to whole blocks where the kernel wants them so
    return [np.ceil(load / _BLOCK) * _BLOCK if context else load for load in drawn]


def _harness_s(name: str, tokens: int, hidden: int) -> float:
    """Return what the context benchmark adds: the host, and scatter and gather over the tokens of all ranks."""
    device = Device.of(machine(name, 1, 1), fp8=True)
    return _AHEAD_S + tokens * hidden * (FP8_BLOCK + BF16) / float(device.copy[0])
