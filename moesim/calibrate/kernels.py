"""Kernel tables of `moesim profile`, and kernels of a profiler trace: what they tell of compute."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import FormatError
from moesim.calibrate.observe import Observation, text_of
from moesim.costs import constants as k
from moesim.costs.attention import attention_s
from moesim.costs.constants import family
from moesim.costs.roofline import Device, gemm_s, mlp_s, together, uses_fp8
from moesim.costs.table import read_tables
from moesim.costs.types import Direction
from moesim.spec import BF16, FP8_BLOCK, ModelSpec
from moesim.validate.exchange import exchange
from moesim.validate.loads import mlp_spec, uniform

if TYPE_CHECKING:
    from moesim.cluster import Cluster

_BYTES: Final = {
    "bf16": (BF16, BF16), "fp16": (BF16, BF16), "fp8": (1.0, FP8_BLOCK), "fp4": (0.5 + 1 / 16, 0.5 + 1 / 16),
}  # fmt: skip
"""Bytes per element of weights and of tokens, by the dtype of a table."""
_KINDS: Final = {
    # in this order: what a name says first
    "dispatch": re.compile(r"dispatch", re.IGNORECASE),
    "combine": re.compile(r"combine", re.IGNORECASE),
    "attention": re.compile(r"flash|fmha|mla_|attention|splitkv", re.IGNORECASE),
    "experts": re.compile(r"grouped|group_gemm|moe.*gemm|fused_moe|masked.*gemm", re.IGNORECASE),
}


def read_kernel_table(path: str | Path, cluster: Cluster) -> list[Observation]:
    """Return the rows of a kernel table or of several: they tell launches, memory and arithmetic of the roofline.

    Raises
    ------
    FormatError
        If the file is not a kernel table, or of another device, or the cluster mixes devices.
    """
    tables, name = read_tables(path).tables, Path(path).name
    device = cluster.device[0]
    if others := sorted({d for d in cluster.device if (family(d) or d) != (family(device) or device)}):
        several = f"{cluster.name} has {device} and {', '.join(others)}, whose constants of the roofline are shared"
        raise FormatError(path, "device", f"{several}; calibrate a topology of one device")
    if tables[0].device != device and family(tables[0].device) != (family(device) or None):
        raise FormatError(path, "device", f"expected {device} ({cluster.name}), got {tables[0].device!r}")
    found = []
    for table in tables:
        spec = mlp_spec(table.hidden, table.intermediate, 1, 1, *_BYTES[table.dtype])
        for row in table.rows:
            loads = np.full(row.active_experts, row.tokens_per_expert)
            label = f"{table.hidden} x {table.intermediate} {table.dtype}, {row.active_experts} experts of "
            label += f"{row.tokens_per_expert:g} tokens"
            key = _compute_key(cluster, spec, loads)
            found.append(Observation(name, label, key, row.seconds, _whole_experts(spec, loads)))
    return found


def _whole_experts(spec: ModelSpec, loads: Array) -> Callable[[Cluster], float]:
    return lambda cluster: float(mlp_s(loads[None], _one(cluster, spec), spec, spec.intermediate)[0])


def _one(cluster: Cluster, spec: ModelSpec) -> Device:
    return Device.of(cluster.restrict([0]), uses_fp8(spec))


def _gemms_s(cluster: Cluster, spec: ModelSpec, loads: Array) -> tuple[float, float, float]:
    """Return seconds of the two grouped GEMMs alone, and of those their arithmetic and their memory."""
    device, m = _one(cluster, spec), loads[None]
    wide = (2 if spec.gated else 1) * spec.intermediate
    element = FP8_BLOCK if uses_fp8(spec) else BF16
    rows, active = loads.sum(), np.count_nonzero(loads)
    whole = arithmetic = memory = 0.0
    for n, depth, moved in (
        (wide, spec.hidden, rows * (spec.hidden * element + wide * BF16)),
        (spec.hidden, spec.intermediate, rows * (spec.intermediate * element + spec.hidden * BF16)),
    ):
        busy = gemm_s(m, device, n, depth)
        read = (active * n * depth * spec.weight_bytes + moved) / device.hbm
        whole += float(together(busy, read)[0])
        arithmetic, memory = arithmetic + float(busy[0]), memory + float(read[0])
    return whole, arithmetic, memory


def _compute_key(cluster: Cluster, spec: ModelSpec, loads: Array) -> str:
    _, arithmetic, memory = _gemms_s(cluster, spec, loads)
    launches = 5 * k.LAUNCH_S.value
    if launches > max(arithmetic, memory):
        return "constants.launch"
    if max(arithmetic, memory) < 2 * min(arithmetic, memory):
        return ""  # neither decides alone
    return "constants.gemm_share" if arithmetic > memory else "constants.hbm_share"


@dataclass(frozen=True)
class Step:
    """What a profiled step ran: the trace does not say.

    ``layers`` are MoE layers that the trace shows, all steps together; ``ranks`` the expert-parallel group.
    """

    spec: ModelSpec
    tokens_per_rank: int
    ranks: int
    layers: int
    decode: bool = False
    context: int = 2048


def read_profile(path: str | Path, cluster: Cluster, step: Step) -> list[Observation]:
    """Return grouped GEMMs, attention, dispatch and combine of a torch-profiler (Chrome) trace, mean of a layer.

    Loads are taken as balanced. Dispatch and combine kernels also hold the wait for other ranks, so that they are
    compared and nothing is fitted to them; attention is the kernel alone.

    Raises
    ------
    FormatError
        If it is no Chrome trace, or shows none of these kernels, or those of several GPUs.
    """
    name = Path(path).name
    seconds = _kernel_seconds(path)
    if not seconds:
        raise FormatError(path, "traceEvents", "no GPU kernel of dispatch, combine, attention or grouped GEMM found")
    spec = step.spec
    tokens = float(step.tokens_per_rank)
    slots = -(-spec.experts // step.ranks)
    loads = np.full(slots, tokens * spec.top_k / slots)
    found = []
    for kind, total in seconds.items():
        measured = total / step.layers
        label = f"{kind}, mean of {step.layers} layers"
        if kind == "experts":
            key = _compute_key(cluster, spec, loads)
            found.append(Observation(name, label, key, measured, lambda c: _gemms_s(c, spec, loads)[0]))
        elif kind == "attention" and spec.attention is not None:
            key = "" if step.decode else "constants.attention_share"
            found.append(Observation(name, label, key, measured, lambda c: _scores_s(c, step)))
        elif kind in ("dispatch", "combine"):
            found.append(Observation(name, f"{label}, waiting included", "", measured, _exchange_of(step, kind)))
    return found


def _exchange_of(step: Step, kind: str) -> Callable[[Cluster], float]:
    direction: Direction = "dispatch" if kind == "dispatch" else "combine"
    transport = "direct" if step.decode else "hierarchical"

    def predict(cluster: Cluster) -> float:
        where = cluster.restrict(range(step.ranks))
        experts = -(-step.spec.experts // step.ranks) * step.ranks
        spec = replace(step.spec, experts=experts, groups=1, group_limit=1)
        flow = uniform(where, experts, spec.top_k, step.tokens_per_rank)
        return exchange(where, spec, transport, flow, direction)[0]

    return predict


def _scores_s(cluster: Cluster, step: Step) -> float:
    """Return the seconds of attention's kernel: what context adds."""
    one, tokens = cluster.restrict([0]), np.full(1, float(step.tokens_per_rank))
    with_context = attention_s(tokens, tokens * step.context, step.decode, one, step.spec)
    return float((with_context - attention_s(tokens, tokens * 0, step.decode, one, step.spec))[0])


def _kernel_seconds(path: str | Path) -> dict[str, float]:
    """Return the summed seconds of kernels by kind; streams of one device, which torch.profiler numbers as ``pid``."""
    try:
        data: Any = json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "", f"expected a Chrome trace (JSON): {error}") from None
    events: Sequence[Any] = data.get("traceEvents", ()) if isinstance(data, dict) else data
    if not isinstance(events, list):
        raise FormatError(path, "traceEvents", "expected a list of events, as torch.profiler exports")
    totals: dict[str, float] = {}
    devices: set[str] = set()
    for event in events:
        if not isinstance(event, dict) or str(event.get("cat", "")).lower() != "kernel":
            continue
        kind = next((kind for kind, pattern in _KINDS.items() if pattern.search(str(event.get("name", "")))), None)
        duration = event.get("dur")
        if kind is not None and isinstance(duration, int | float):
            totals[kind] = totals.get(kind, 0.0) + float(duration) * 1e-6
            devices.add(str(event.get("pid")))
    if len(devices) > 1:
        raise FormatError(
            path,
            "traceEvents",
            f"expected the kernels of one GPU, found those of {len(devices)} (pid); give the trace of a single rank",
        )
    return totals
