"""The hardware of measured rows as clusters: presets with the constants of each published system."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from moesim.cluster import Cluster

_RATES: Final[dict[str, tuple[str, float, float | None, float, float, float]]] = {
    # name: device, dense bf16 TFLOP/s, dense fp8 TFLOP/s (None: no fp8 tensor cores), HBM TB/s, NVLink GB/s nominal and
    # as NCCL reaches it
    "a100": ("A100", 312, None, 2.04, 300, 203),
    "h100": ("H100-SXM", 989, 1979, 3.35, 450, 320),
    "h200": ("H200", 989, 1979, 4.8, 450, 320),
    "h800": ("H800", 989, 1979, 3.35, 200, 160),
    "h20": ("H20", 148, 296, 4.0, 450, 320),
    "b200": ("B200", 2250, 4500, 8.0, 900, 560),
    "b300": ("B300", 2250, 4500, 8.0, 900, 560),
    "gb200": ("GB200", 2500, 5000, 8.0, 900, 700),
    "gb300": ("GB300", 2500, 5000, 8.0, 900, 700),
}
"""Datasheet peaks; NVLink as measured: NCCL all-to-all of 512 MB (A100, Hopper, B200), DeepEP README (H800), one-sided
all-to-all of TensorRT-LLM blog 18 at EP8 (GB200)."""


@lru_cache
def machine(name: str, nodes: int, gpus_per_node: int) -> Cluster:
    """Return a cluster of a published system: rail-aligned ConnectX-7 NICs between nodes, NVLink inside.

    Parameters
    ----------
    name
        Key of the system: ``"h100"``, ``"gb200"``.
    """
    device, bf16, fp8, hbm, nominal, effective = _RATES[name]
    edits: dict[str, Any] = {
        "gpus_per_node": gpus_per_node,
        "gpu.model": device,
        "gpu.flops_bf16": f"{bf16} TFLOP/s",
        # without fp8 tensor cores fp8 weights are multiplied in bf16
        "gpu.flops_fp8": f"{bf16 if fp8 is None else fp8} TFLOP/s",
        "gpu.hbm_bandwidth": f"{hbm} TB/s",
        "tier.node.bandwidth": f"{nominal} GB/s",
        "tier.node.effective": f"{effective} GB/s",
    }
    if nodes > 1:
        return Cluster.preset("h100-4x8-rail").edit({"nodes": nodes, **edits})
    return Cluster.preset("h100-1x8").edit(edits)


def system(text: str) -> str | None:
    """Return the key of the system that a row names (``"h100_sxm"``, ``"8x H200"``), None where it is not known."""
    lower = text.lower()
    found = [name for name in _RATES if name in lower]
    return max(found, key=len) if found else None
