"""The experts in fp8 with block scales, for inference: where the device has fp8 tensor cores."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import triton
from torch import Tensor

from moesim.moe.kernels import gemm, interpreted
from moesim.moe.kernels.grouping import Grouping
from moesim.moe.kernels.jit import fp8 as jit
from moesim.moe.kernels.move import permute, quantise_rows, quantise_weights, unpermute
from moesim.moe.kernels.tiles import FP8_TILES, Tile, bench, candidates, prune

_NAMES: Final = ("BLOCK_M", "BLOCK_N", "BLOCK_D", "GROUP", "PERSISTENT")
INTERPRETED: Final = Tile(16, 32, 128)
plain = triton.heuristics(gemm.HEURISTICS)(jit.grouped_fp8)
tuned = triton.autotune(
    [INTERPRETED.config(_NAMES)] if interpreted() else candidates(FP8_TILES, _NAMES),
    key=["D", "N", "ROWS", "SPREAD", "SWIGLU"], prune_configs_by={"early_config_prune": prune}, do_bench=bench,
)(plain)  # fmt: skip


class Fp8Weights(NamedTuple):
    """Experts in fp8 (e4m3), scales of 128 x 128 elements in float32.

    `gate_up` [E, 2, intermediate, hidden] and `down` [E, 1, hidden, intermediate], each with its scales.
    """

    gate_up: Tensor
    gate_up_scale: Tensor
    down: Tensor
    down_scale: Tensor


def supported(device: torch.device) -> bool:
    """Whether this device has fp8 tensor cores (Ada, Hopper and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def to_fp8(gate_up: Tensor, down: Tensor) -> Fp8Weights:
    """Quantise experts: `gate_up` [E, hidden, 2 intermediate] and `down` [E, intermediate, hidden]."""
    halves = gate_up.view(*gate_up.shape[:2], 2, -1).permute(0, 2, 3, 1)
    return Fp8Weights(*quantise_weights(halves), *quantise_weights(down.transpose(1, 2)[:, None]))


def grouped_fp8(
    x: Tensor, x_scale: Tensor, w: Tensor, w_scale: Tensor, grouping: Grouping, *, dtype: torch.dtype = torch.bfloat16,
    tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """Multiply fp8 rows `[P, D]` with their expert's fp8 weights `[E, parts, N, D]`; two parts make a SwiGLU.

    Returns
    -------
    `[P, N]` in `dtype`.
    """
    parts, columns, depth = w.shape[1:]
    out = torch.empty((grouping.rows, columns), dtype=dtype, device=x.device)
    if not grouping.rows:
        return out
    arguments = (
        x, x_scale, w, w_scale, out, grouping.offsets, grouping.expert_of, grouping.row_of, grouping.totals,
        grouping.experts, depth, columns, grouping.expert_of.shape[1], *gemm.keys(grouping),
    )  # fmt: skip
    gemm.launch(tuned, plain, arguments, {"SWIGLU": parts == 2}, grouping, columns, tile, x.device)
    return out


def experts_fp8(x: Tensor, grouping: Grouping, weights: Tensor, packed: Fp8Weights) -> Tensor:
    """Return the weighted sum of each token's experts `[T, H]`: rows are quantised before either product.

    Parameters
    ----------
    x
        Tokens `[T, H]`, bfloat16 or float32.
    weights
        Gate weights `[T, K]`.
    """
    end = grouping.offsets[-1:]
    act = grouped_fp8(
        *quantise_rows(permute(x, grouping), end), packed.gate_up, packed.gate_up_scale, grouping, dtype=x.dtype
    )
    y = grouped_fp8(*quantise_rows(act, end), packed.down, packed.down_scale, grouping, dtype=x.dtype)
    return unpermute(y, grouping, weights)
