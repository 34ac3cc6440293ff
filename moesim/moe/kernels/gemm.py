"""Grouped products on tensors: launching, tuning, and which variant takes which matrices."""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
from torch import Tensor

from moesim.moe.kernels import interpreted
from moesim.moe.kernels.grouping import SMALLEST, Grouping
from moesim.moe.kernels.jit import gemm as jit
from moesim.moe.kernels.tiles import EXACT, FEW, GRADIENT, MANY, Tile, bench, candidates, prune, prune_gradient

HEURISTICS: Final = {
    "EVEN_D": lambda a: a["D"] % a["BLOCK_D"] == 0,
    "EVEN_N": lambda a: a["N"] % a["BLOCK_N"] == 0,
    "LEVEL": lambda a: (a["BLOCK_M"] // SMALLEST).bit_length() - 1,
}
"""Flags of grouped kernels that follow from their shapes and tile: whole blocks, and which table of blocks."""
_NAMES: Final = ("BLOCK_M", "BLOCK_N", "BLOCK_D", "GROUP", "BOX", "PERSISTENT")
_KEY: Final = ["D", "N", "ROWS", "SPREAD", "SWIGLU", "KEEP", "GATHER", "DEEP"]
plain = triton.heuristics(HEURISTICS)(jit.grouped)
tuned = triton.autotune(
    candidates((*FEW, *MANY, *EXACT), _NAMES), key=_KEY, prune_configs_by={"early_config_prune": prune}, do_bench=bench
)(plain)
tuned_gradient = triton.autotune(
    candidates(GRADIENT, _NAMES[:4]),
    key=["D", "N", "ROWS"],
    prune_configs_by={"early_config_prune": prune_gradient},
    do_bench=bench,
)(jit.weight_gradient)


def grouped(
    x: Tensor, w: Tensor, grouping: Grouping, *, swiglu: bool = False, keep: bool = False, gather: bool = False,
    deep: bool = False, tile: Tile | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Multiply rows sorted by expert with that expert's weights; dropless, empty experts cost nothing.

    Parameters
    ----------
    x
        Rows `[P, D]`, or with `gather` tokens `[T, D]` that are taken through the grouping's order.
    w
        `[E, D, N]`, with `deep` `[E, N, D]`; with `swiglu` 2 N columns, gates before ups.
    swiglu
        Apply SwiGLU to the result, in the same kernel.
    keep
        With `swiglu`: also return what SwiGLU was applied to, for the backward pass.
    tile
        Shape of the tiles; default: the fastest, measured at the first call of a kind.

    Returns
    -------
    `[P, N]` in the dtype of `x`, and `[P, 2 N]` or None.
    """
    depth = x.shape[1]
    width = w.shape[1] if deep else w.shape[2]
    columns = width // 2 if swiglu else width
    rows, device = grouping.rows, x.device
    out = torch.empty((rows, columns), dtype=x.dtype, device=device)
    before = torch.empty((rows, width), dtype=x.dtype, device=device) if keep else None
    if rows == 0:
        return out, before
    strides = w.stride()
    arguments = (
        x, w, out, before if before is not None else out, grouping.order, grouping.offsets, grouping.expert_of,
        grouping.row_of, grouping.totals, len(x), grouping.experts, depth, columns, grouping.expert_of.shape[1],
        x.stride(0), strides[0], strides[2 if deep else 1], strides[1 if deep else 2],
        *keys(grouping),
    )  # fmt: skip
    flags = {
        "SWIGLU": swiglu, "KEEP": keep, "GATHER": gather, "TOP_K": grouping.top_k if gather else 1, "DEEP": deep,
        "WIDEN": widen(x),
    }  # fmt: skip
    prepare(device)
    launch(tuned, plain, arguments, flags, grouping, columns, tile, device)
    return out, before


def weight_gradient(x: Tensor, g: Tensor, grouping: Grouping, *, tile: Tile | None = None) -> Tensor:
    """Return `x[rows of e]^T g[rows of e]` of each expert, `[E, D, N]`; zeros for one without rows."""
    depth, width = x.shape[1], g.shape[1]
    out = torch.empty((grouping.experts, depth, width), dtype=x.dtype, device=x.device)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (grouping.experts * -(-depth // meta["BLOCK_D"]) * -(-width // meta["BLOCK_N"]),)

    arguments = (x, g, out, grouping.offsets, depth, width, x.stride(0), g.stride(0), keys(grouping)[0])
    if tile is None:
        tuned_gradient[grid](*arguments, WIDEN=widen(x))
    else:
        meta = {name: tile.meta()[name] for name in _NAMES[:4]}
        jit.weight_gradient[grid](*arguments, WIDEN=widen(x), **meta, num_warps=tile.warps, num_stages=tile.stages)
    return out


def launch(
    auto: Any, one: Any, arguments: tuple[Any, ...], flags: dict[str, Any], grouping: Grouping, columns: int,
    tile: Tile | None, device: torch.device,
) -> None:  # fmt: skip
    """Launch with a given tile or the tuned one; programs for the most tiles there can be."""

    def grid(meta: dict[str, Any]) -> tuple[int]:
        most = grouping.most_blocks(meta["BLOCK_M"]) * -(-columns // meta["BLOCK_N"])
        return (min(most, processors(device)) if meta["PERSISTENT"] else most,)

    if tile is None:
        auto[grid](*arguments, **flags)
        return
    meta = tile.meta() if one is plain else {name: value for name, value in tile.meta().items() if name != "BOX"}
    one[grid](*arguments, **flags, **meta, num_warps=tile.warps, num_stages=tile.stages)


def widen(x: Tensor) -> bool:
    """Whether the product must be made in float32 because the interpreter has no bfloat16 product."""
    return interpreted() and x.dtype == torch.bfloat16


def processors(device: torch.device) -> int:
    """Return the number of multiprocessors; a handful where there is no GPU, so that the loop over tiles is tested."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def prepare(device: torch.device) -> None:
    """Give Triton memory for descriptors that kernels make on the device."""

    def scratch(size: int, alignment: int, stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.int8, device=device)

    triton.set_allocator(scratch)


def keys(grouping: Grouping) -> tuple[int, int]:
    """Return what tuning depends on: mean rows of an expert and experts, rounded up to powers of two and four."""
    mean = -(-grouping.rows // grouping.experts)
    bits = max(0, grouping.experts - 1).bit_length()
    return min(4096, 1 << max(0, mean - 1).bit_length()), 1 << (bits + bits % 2)
