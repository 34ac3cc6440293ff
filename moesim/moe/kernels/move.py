"""Rows to experts and back, SwiGLU's gradient, and quantisation: what stands around the products."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from moesim.moe.kernels.grouping import Grouping, next_power
from moesim.moe.kernels.jit import move as jit

FP8: Final = torch.float8_e4m3fn
FP8_LIMIT: Final = 448.0
SCALE_BLOCK: Final = 128
_WIDEST: Final = 1024


def permute(x: Tensor, grouping: Grouping) -> Tensor:
    """Return each pick's token in the pick's row `[P, H]`, from tokens `[T, H]`."""
    hidden = x.shape[1]
    out = torch.empty((grouping.rows, hidden), dtype=x.dtype, device=x.device)
    if grouping.rows:
        jit.permute[(grouping.rows,)](
            x, grouping.order, out, grouping.offsets[-1:], hidden, x.stride(0),
            TOP_K=grouping.top_k, BLOCK=_block(hidden),
        )  # fmt: skip
    return out


def unpermute(y: Tensor, grouping: Grouping, weights: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Add up the rows of each token, weighted if there are weights `[T, K]`; the sum is made in float32.

    Returns
    -------
    `[T, H]` in `dtype`, by default that of `y`.
    """
    hidden, tokens = y.shape[1], grouping.rows // grouping.top_k
    out = torch.empty((tokens, hidden), dtype=dtype or y.dtype, device=y.device)
    block = _block(hidden)
    if tokens:
        jit.unpermute[(tokens, -(-hidden // block))](
            y, grouping.place, weights if weights is not None else y, out, hidden,
            TOP_K=grouping.top_k, WEIGHTED=weights is not None, BLOCK=block,
        )  # fmt: skip
    return out


def unpermute_backward(grad: Tensor, y: Tensor, grouping: Grouping, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the rows `[P, H]` and of the weights `[T, K]`."""
    hidden = y.shape[1]
    grad_y, grad_weights = torch.empty_like(y), torch.empty_like(weights)
    if grouping.rows:
        jit.unpermute_backward[(grouping.rows,)](
            grad, y, grouping.place, weights, grad_y, grad_weights, hidden, grad.stride(0),
            TOP_K=grouping.top_k, BLOCK=_block(hidden),
        )  # fmt: skip
    return grad_y, grad_weights


def swiglu_backward(before: Tensor, grad: Tensor, grouping: Grouping) -> tuple[Tensor, Tensor]:
    """Return the gradient of what SwiGLU was applied to `[P, 2 N]`, and SwiGLU's result once more `[P, N]`."""
    width = grad.shape[1]
    grad_before, act = torch.empty_like(before), torch.empty_like(grad)
    block = _block(width)
    if grouping.rows:
        jit.swiglu_backward[(grouping.rows, -(-width // block))](
            before, grad, grad_before, act, grouping.offsets[-1:], width, BLOCK=block
        )
    return grad_before, act


def quantise_rows(x: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise rows `[P, H]` to fp8 (e4m3), one scale for 128 neighbouring elements.

    Parameters
    ----------
    end
        Number of rows in use, int32 `[1]` on the device; others stay undefined.

    Returns
    -------
    fp8 `[P, H]` and float32 scales `[P, ceil(H / 128)]`.
    """
    rows, hidden = x.shape
    blocks = -(-hidden // SCALE_BLOCK)
    out = torch.empty((rows, hidden), dtype=FP8, device=x.device)
    scales = torch.empty((rows, blocks), dtype=torch.float32, device=x.device)
    if rows:
        jit.quantise[(rows, blocks)](x, out, scales, end, hidden, x.stride(0), LIMIT=FP8_LIMIT, BLOCK=SCALE_BLOCK)
    return out, scales


def quantise_weights(w: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise matrices `[..., N, D]` to fp8 (e4m3), one scale for 128 x 128 elements; done once, in PyTorch.

    Returns
    -------
    fp8 of the same shape and float32 scales `[..., ceil(N / 128), ceil(D / 128)]`.
    """
    n, d = w.shape[-2:]
    tall, deep = -(-n // SCALE_BLOCK), -(-d // SCALE_BLOCK)
    padded = torch.nn.functional.pad(w.float(), (0, deep * SCALE_BLOCK - d, 0, tall * SCALE_BLOCK - n))
    tiles = padded.view(*w.shape[:-2], tall, SCALE_BLOCK, deep, SCALE_BLOCK)
    scales = tiles.abs().amax(dim=(-3, -1)).clamp(min=1e-12) / FP8_LIMIT
    narrow = (tiles / scales[..., :, None, :, None]).flatten(-4, -3).flatten(-2, -1)
    return narrow[..., :n, :d].clamp(-FP8_LIMIT, FP8_LIMIT).to(FP8).contiguous(), scales.contiguous()


def _block(width: int) -> int:
    return min(_WIDEST, next_power(width))
