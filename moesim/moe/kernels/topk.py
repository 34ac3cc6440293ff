"""The router's choice in one kernel, with the gradient of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moesim.moe.kernels.grouping import next_power
from moesim.moe.kernels.jit import topk as jit


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, bias: Tensor | None, top_k: int, sigmoid: bool, normalise: bool, groups: int,
        limit: int, scale: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        tokens, experts = logits.shape
        chosen = torch.empty((tokens, top_k), dtype=torch.int64, device=logits.device)
        weights = torch.empty((tokens, top_k), dtype=torch.float32, device=logits.device)
        if tokens:
            jit.pick[(tokens,)](
                logits, bias if bias is not None else logits, chosen, weights, experts, logits.stride(0), scale,
                SIGMOID=sigmoid, BIASED=bias is not None, NORMALISE=normalise, GROUPS=groups, LIMIT=limit,
                TOP_K=top_k, SLOTS=next_power(top_k), EXPERTS=next_power(experts), num_warps=1,
            )  # fmt: skip
        ctx.save_for_backward(logits, chosen)
        ctx.how = sigmoid, normalise, scale
        ctx.mark_non_differentiable(chosen)
        return chosen, weights

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        logits, chosen = ctx.saved_tensors
        sigmoid, normalise, scale = ctx.how
        tokens, experts = logits.shape
        out = torch.empty_like(logits, memory_format=torch.contiguous_format)
        if tokens:
            jit.pick_backward[(tokens,)](
                logits, chosen, grads[1].contiguous(), out, experts, logits.stride(0), scale,
                SIGMOID=sigmoid, NORMALISE=normalise, TOP_K=chosen.shape[1], EXPERTS=next_power(experts), num_warps=1,
            )  # fmt: skip
        return out, *(None,) * 7


def pick(
    logits: Tensor, top_k: int, *, sigmoid: bool = False, bias: Tensor | None = None, normalise: bool = True,
    groups: int = 1, limit: int = 1, scale: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Choose experts as `moesim.moe.gating.pick` says it, in one pass over the logits `[T, E]`."""
    chosen, weights = _Pick.apply(  # type: ignore[no-untyped-call]
        logits.contiguous(), bias, top_k, sigmoid, normalise, groups, limit, scale
    )
    return chosen, weights
