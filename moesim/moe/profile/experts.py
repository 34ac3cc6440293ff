"""The expert layer of one rank by several kernels: ours, PyTorch's grouped product, and a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from moesim.moe.experts import grouped_swiglu
from moesim.moe.kernels import available
from moesim.moe.profile.device import Device
from moesim.moe.profile.timing import Clock

BYTES: Final = {"bf16": 2.0, "fp8": 1.0 + 4 / 128**2}
"""Bytes of one weight, scales included."""


@dataclass(frozen=True)
class Case:
    """What is measured: experts of one shape, so many of them, each with as many tokens."""

    kernel: str
    dtype: str
    hidden: int
    intermediate: int
    tokens_per_expert: int
    active_experts: int

    @property
    def flops(self) -> float:
        """Arithmetic of the products."""
        return 6.0 * self.tokens_per_expert * self.active_experts * self.hidden * self.intermediate

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights, each read once."""
        return 3.0 * self.active_experts * self.hidden * self.intermediate * BYTES[self.dtype]


def kernels_of(device: Device) -> list[tuple[str, str]]:
    """Return (kernel, dtype) that this device can run; Triton on GPUs alone."""
    found = [("torch loop", "bf16")]
    if _grouped_mm() is not None:
        found.append(("torch grouped_mm", "bf16"))
    if device.gpu and available():
        found = [("triton", "bf16"), *found]
        if device.fp8:
            found.insert(1, ("triton", "fp8"))
    return found


def measure(case: Case, device: Device, clock: Clock, *, seed: int = 0) -> dict[str, Any]:
    """Measure one case.

    Returns
    -------
    `seconds` of the whole layer (grouping, permutation, products, sum per token), `products_s` of the two grouped
    products alone, `spread` of the former, `runs`, and whether a CUDA graph was replayed.
    """
    layer = _Layer(case, device, seed)
    whole, products = layer.calls()
    # a loop asks the device for its counts and cannot be recorded
    graph = case.kernel != "torch loop"
    timed, alone = clock(whole, graph=graph), clock(products, graph=graph)
    return {
        "seconds": timed.seconds, "products_s": alone.seconds, "spread": timed.spread, "runs": timed.runs,
        "graph": timed.graph,
    }  # fmt: skip


class _Layer:
    def __init__(self, case: Case, device: Device, seed: int) -> None:
        generator = torch.Generator(device.torch).manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            # random numbers: matrix units run faster on zeros
            made = torch.empty(shape, dtype=torch.bfloat16, device=device.torch)
            scaled: Tensor = made.normal_(generator=generator) / shape[-2] ** 0.5
            return scaled

        a, h, i = case.active_experts, case.hidden, case.intermediate
        rows = case.tokens_per_expert * a
        self.case = case
        self.x = draw(rows, h) * rows**0.5
        self.gate_up, self.down = draw(a, h, 2 * i), draw(a, i, h)
        owner = torch.arange(a, device=device.torch).repeat(case.tokens_per_expert)
        self.chosen = owner[torch.randperm(rows, generator=generator, device=device.torch)][:, None]
        self.weights = torch.ones(rows, 1, device=device.torch)

    def calls(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        if self.case.kernel == "triton":
            return self._fp8() if self.case.dtype == "fp8" else self._triton()
        return self._plain(self._grouped_mm if self.case.kernel == "torch grouped_mm" else self._loop)

    def _triton(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        from moesim.moe.kernels.gemm import grouped
        from moesim.moe.kernels.grouping import group
        from moesim.moe.kernels.mlp import experts
        from moesim.moe.kernels.move import permute

        grouping = group(self.chosen, self.case.active_experts)
        rows = permute(self.x, grouping)

        @torch.no_grad()
        def whole() -> Any:
            return experts(self.x, self.chosen, self.weights, self.gate_up, self.down)

        def products() -> Any:
            act, _ = grouped(rows, self.gate_up, grouping, swiglu=True)
            return grouped(act, self.down, grouping)

        return whole, products

    def _fp8(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        from moesim.moe.kernels.fp8 import experts_fp8, grouped_fp8, to_fp8
        from moesim.moe.kernels.grouping import group
        from moesim.moe.kernels.move import permute, quantise_rows

        experts = self.case.active_experts
        packed = to_fp8(self.gate_up, self.down)
        self.gate_up = self.down = self.x[:0]
        grouping = group(self.chosen, experts)
        end = grouping.offsets[-1:]
        rows = quantise_rows(permute(self.x, grouping), end)
        act = quantise_rows(grouped_fp8(*rows, packed.gate_up, packed.gate_up_scale, grouping), end)

        def whole() -> Any:
            return experts_fp8(self.x, group(self.chosen, experts), self.weights, packed)

        def products() -> Any:
            grouped_fp8(*rows, packed.gate_up, packed.gate_up_scale, grouping)
            return grouped_fp8(*act, packed.down, packed.down_scale, grouping)

        return whole, products

    def _plain(self, product: Callable[[Tensor, Tensor], Tensor]) -> tuple[Callable[[], Any], Callable[[], Any]]:
        experts = self.case.active_experts
        flat = self.chosen[:, 0]
        bins = torch.arange(experts, device=flat.device)

        @torch.no_grad()
        def whole() -> Any:
            order = torch.argsort(flat, stable=True)
            # counted by searching: bincount would wait for the device
            ends = torch.searchsorted(flat[order], bins, right=True).to(torch.int32)
            y = product(self.x[order], ends) * self.weights[order].to(self.x.dtype)
            return torch.empty_like(y).index_copy_(0, order, y)

        order = torch.argsort(flat, stable=True)
        rows, ends = self.x[order], torch.searchsorted(flat[order], bins, right=True).to(torch.int32)

        @torch.no_grad()
        def products() -> Any:
            return product(rows, ends)

        return whole, products

    def _loop(self, rows: Tensor, ends: Tensor) -> Tensor:
        counts = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
        return grouped_swiglu(rows, counts, self.gate_up, self.down)

    def _grouped_mm(self, rows: Tensor, ends: Tensor) -> Tensor:
        product = _grouped_mm()
        gate, up = product(rows, self.gate_up, offs=ends).chunk(2, dim=-1)
        result: Tensor = product(torch.nn.functional.silu(gate) * up, self.down, offs=ends)
        return result


def _grouped_mm() -> Any:
    return getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
