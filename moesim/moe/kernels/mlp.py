"""The routed experts of a layer by Triton, with gradients."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from moesim.moe.kernels.gemm import grouped, weight_gradient
from moesim.moe.kernels.grouping import Grouping, group
from moesim.moe.kernels.move import permute, swiglu_backward, unpermute, unpermute_backward

GATHER_ROWS: Final = 64
"""Below so many rows an expert, a pass without gradients takes tokens where they lie instead of copying them first."""


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, grouping: Grouping) -> Tensor:
        rows = permute(x, grouping)
        act, before = grouped(rows, gate_up, grouping, swiglu=True, keep=True)
        y, _ = grouped(act, down, grouping)
        ctx.grouping = grouping
        ctx.save_for_backward(rows, before, y, weights, gate_up, down)
        return unpermute(y, grouping, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        rows, before, y, weights, gate_up, down = ctx.saved_tensors
        grouping: Grouping = ctx.grouping
        grad_y, grad_weights = unpermute_backward(grads[0].contiguous(), y, grouping, weights)
        # the same weights, read along their other axis: no transposed copy
        grad_act, _ = grouped(grad_y, down, grouping, deep=True)
        grad_before, act = swiglu_backward(before, grad_act, grouping)
        grad_rows, _ = grouped(grad_before, gate_up, grouping, deep=True)
        return (
            unpermute(grad_rows, grouping),
            grad_weights,
            weight_gradient(rows, grad_before, grouping),
            weight_gradient(act, grad_y, grouping),
            None,
        )


def experts(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return the weighted sum of each token's experts `[T, H]`.

    Parameters
    ----------
    x
        Tokens `[T, H]`.
    chosen
        Experts of each token, int `[T, K]`; -1 is a dropped pick and adds nothing.
    weights
        What their results are multiplied by, `[T, K]`.
    gate_up, down
        `[E, H, 2 I]`, `[E, I, H]`, in the dtype of `x`; under autocast all three are cast to its dtype.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, gate_up, down = x.to(dtype), gate_up.to(dtype), down.to(dtype)
    grouping = group(chosen, down.shape[0])
    x, weights = x.contiguous(), weights.contiguous()
    tracked = (x, weights, gate_up, down)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tracked):
        result: Tensor = _Experts.apply(x, weights, gate_up, down, grouping)  # type: ignore[no-untyped-call]
        return result
    few = grouping.rows < GATHER_ROWS * grouping.experts
    rows = x if few else permute(x, grouping)
    act, _ = grouped(rows, gate_up, grouping, swiglu=True, gather=few)
    y, _ = grouped(act, down, grouping)
    return unpermute(y, grouping, weights)
