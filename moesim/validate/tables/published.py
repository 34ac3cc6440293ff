"""All-to-all numbers that projects print about themselves: DeepEP, TensorRT-LLM, NCCL EP, pplx, Hybrid-EP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from moesim.costs.types import Direction
from moesim.spec import BF16, FP8_BLOCK
from moesim.validate.exchange import exchange
from moesim.validate.loads import Counts, balanced, mlp_spec, uniform
from moesim.validate.machines import machine, system
from moesim.validate.rows import Case, Row, Skip, role_of
from moesim.validate.tables.nvlink import NVFP4

if TYPE_CHECKING:
    from moesim.cluster import Cluster

COLUMNS = (
    "lib",
    "hardware",
    "interconnect",
    "kernel",
    "op",
    "ep",
    "nodes",
    "gpus_per_node",
    "tokens_per_rank",
    "id",
    "version",
    "scope",
    "hidden",
    "topk",
    "topk_groups",
    "experts",
    "dtype",
    "sms",
    "latency_us",
    "bandwidth_GBps",
    "role",
)
_TABLE = "alltoall_published"
_NO_LIMIT = 64.0  # SMs that move more than NVLink does


def published(rows: Sequence[Row]) -> Iterator[Case | Skip]:
    """Score rows of a library that a transport models, on hardware whose constants are sourced."""
    for row in rows:
        reason = _unmodelled(row)
        if reason:
            yield Skip(_TABLE, reason)
            continue
        kind, transport = _transport(row)
        where = _cluster(row)
        top_k, tokens = int(float(row["topk"] or 8)), int(float(row["tokens_per_rank"]))
        experts = _experts(row, where.ranks)
        spec = mlp_spec(int(float(row["hidden"] or 7168)), 2048, experts, top_k, 1.0, _bytes(row["dtype"]))
        groups = 4 if row["topk_groups"].startswith(("4", "min")) else 0
        drawn = balanced if row["lib"].startswith("TRT") else partial(uniform, groups=groups)
        flow = drawn(where, experts, top_k, tokens)
        side: Direction = "dispatch" if row["op"] == "dispatch" else "combine"
        sms = _sms(row, kind) if transport == "hierarchical" else 0.0
        predicted, null = exchange(where, spec, transport, flow, side, sms)
        label = f"{row['id']} {row['lib']} {row['hardware'][:12]} EP{row['ep']} {side} {tokens} tok"
        label += f" {sms:.0f} SM" if sms else ""
        yield Case(f"{_TABLE} {kind}", role_of(row), label, _seconds(row, where, flow, spec.hidden), predicted, null)


def _unmodelled(row: Row) -> str:
    """Return why a row cannot be scored, or nothing."""
    lib, hardware, fabric, kernel = row["lib"], row["hardware"], row["interconnect"], row["kernel"]
    if row["op"] not in ("dispatch", "combine"):
        return f"{row['op']}: not dispatch or combine"
    if "EFA" in fabric or "EFA" in hardware or "p5" in hardware:
        return "EFA: no sourced constants of its NICs and host proxy"
    if "MI3" in hardware:
        return "AMD: no sourced constants"
    if "SM90" in hardware or "SM100" in hardware:
        return "hardware not named"
    if "IBRC" in kernel:
        return "messages posted by a host proxy"
    if "PCIe" in lib or "disabled" in hardware:
        return "NVLink switched off"
    if system(hardware) is None:
        return f"no constants of {hardware}"
    if row["role"] == "superseded" or not (row["latency_us"] or row["bandwidth_GBps"]):
        return "withdrawn, or no number"
    if "pure RDMA" in row["version"]:
        return "DeepEP low latency before 2025-06 (RDMA inside the node too)"
    if "2025-02-25 (initial)" in row["version"] and row["scope"] == "inter":
        return "DeepEP normal before 2025-04 (kernels since replaced)"
    if not row["tokens_per_rank"]:
        return "tokens not printed"
    return ""


def _transport(row: Row) -> tuple[str, str]:
    lib, kernel = row["lib"], row["kernel"].lower()
    if lib.startswith("TRT"):
        return "one-sided NVLink", "nvlink"
    if lib == "Hybrid-EP":
        return "Hybrid-EP", "hierarchical"
    if "pplx" in lib:
        return "pplx low latency", "direct"
    low = "low" in kernel or " ll" in kernel or float(row["tokens_per_rank"]) <= 256
    if lib == "NCCL EP":
        return "NCCL EP low latency", "direct"
    if "NVLink5" in row["interconnect"]:
        return "DeepEP Blackwell", "direct" if low else "hierarchical"
    return ("DeepEP low latency", "direct") if low else ("DeepEP normal", "hierarchical")


def _sms(row: Row, kind: str) -> float:
    """Return the SMs of the kernel; Hybrid-EP copies by TMA, and few SMs reach what many do: not its limit."""
    return _NO_LIMIT if kind == "Hybrid-EP" else float(row["sms"] or 0)


def _cluster(row: Row) -> Cluster:
    name, nodes, gpus = str(system(row["hardware"])), int(row["nodes"]), int(row["gpus_per_node"])
    if row["scope"] == "NVL72" or "MNNVL" in row["interconnect"]:
        return machine(name, 1, nodes * gpus)
    return machine(name, nodes, gpus)


def _experts(row: Row, ranks: int) -> int:
    digits = row["experts"].split()[0] if row["experts"] else ""
    count = int(digits) if digits.isdigit() else 256
    return -(-count // ranks) * ranks


def _bytes(dtype: str) -> float:
    text = dtype.lower()
    if "nvfp4" in text:
        return NVFP4
    if "mxfp8" in text:
        return 1.0 + 1 / 32
    return FP8_BLOCK if "fp8" in text else BF16


def _seconds(row: Row, where: Cluster, flow: Counts, hidden: int) -> float:
    """Return the measured time; where a row prints GB/s, of the bytes that its source counts."""
    if row["latency_us"]:
        return float(row["latency_us"]) * 1e-6
    size = hidden * (_bytes(row["dtype"]) if row["op"] == "dispatch" else BF16)
    if _transport(row)[1] == "direct":
        # tokens x experts picked, with the header that DeepEP counts
        copies = float(flow.pairs.sum()) / where.ranks
        size += 16 if row["op"] == "dispatch" else 0
    elif where.nodes > 1:
        copies = float(flow.node_copies.sum()) / where.ranks
    else:
        copies = float(flow.rank_copies.sum()) / where.ranks
    return copies * size / (float(row["bandwidth_GBps"]) * 1e9)
