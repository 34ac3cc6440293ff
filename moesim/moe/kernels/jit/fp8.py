"""Device code of the grouped product in fp8 with block scales (DeepSeek-V3 report, section 3.3)."""

from __future__ import annotations

import triton
import triton.language as tl

from moesim.moe.kernels.jit.gemm import place_of, sigmoid


@triton.jit(do_not_specialize=["E", "bound", "ROWS", "SPREAD"])
def grouped_fp8(
    x, x_scale, w, w_scale, out, offsets, expert_of, row_of, totals, E, D, N, bound, ROWS, SPREAD,
    SWIGLU: tl.constexpr, EVEN_D: tl.constexpr, EVEN_N: tl.constexpr,
    LEVEL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
    PERSISTENT: tl.constexpr,
):  # fmt: skip
    """Grouped product of fp8 rows `x` [P, D] with fp8 weights `w` [E, parts, N, D]; parts are 2 if `SWIGLU`, else 1.

    Scales are float32: of rows one for 1 x `BLOCK_D` elements, of weights one for `BLOCK_D` x `BLOCK_D`. Tensor cores
    add fp8 products in few bits, so each block of depth is added to a float32 total outside of them.
    """
    blocks = tl.load(totals + LEVEL)
    columns = tl.cdiv(N, BLOCK_N)
    tiles = blocks * columns
    deep = tl.cdiv(D, BLOCK_D)
    wide = tl.cdiv(N, BLOCK_D)
    step = tl.num_programs(0)
    stop = tiles
    if not PERSISTENT:
        stop = tl.minimum(tiles, tl.program_id(0) + 1)
    for tile in range(tl.program_id(0), stop, step):
        block, column = place_of(tile, blocks, columns, GROUP)
        expert = tl.load(expert_of + LEVEL * bound + block).to(tl.int64)
        first = tl.load(row_of + LEVEL * bound + block)
        last = tl.load(offsets + expert + 1)
        rows = first + tl.arange(0, BLOCK_M)
        n = column * BLOCK_N + tl.arange(0, BLOCK_N)
        depth = tl.arange(0, BLOCK_D)
        held = tl.minimum(rows, last - 1).to(tl.int64)
        parts = 2 if SWIGLU else 1
        matrix = expert * parts
        x_at = x + held[:, None] * D + depth[None, :]
        w_at = w + matrix * N * D + n[None, :].to(tl.int64) * D + depth[:, None]
        x_scale_at = x_scale + held * deep
        w_scale_at = w_scale + (matrix * wide + (column * BLOCK_N) // BLOCK_D) * deep
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if SWIGLU:
            up_total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for number in range(deep):
            d = number * BLOCK_D + depth
            if EVEN_D:
                part = tl.load(x_at)
            else:
                part = tl.load(x_at, mask=d[None, :] < D, other=0.0)
            if EVEN_D and EVEN_N:
                weight = tl.load(w_at)
            else:
                weight = tl.load(w_at, mask=(d[:, None] < D) & (n[None, :] < N), other=0.0)
            row_scale = tl.load(x_scale_at + number)
            total += tl.dot(part, weight) * (row_scale * tl.load(w_scale_at + number))[:, None]
            if SWIGLU:
                if EVEN_D and EVEN_N:
                    up = tl.load(w_at + N.to(tl.int64) * D)
                else:
                    up = tl.load(
                        w_at + N.to(tl.int64) * D, mask=(d[:, None] < D) & (n[None, :] < N), other=0.0
                    )  # fmt: skip
                up_scale = tl.load(w_scale_at + wide * deep + number)
                up_total += tl.dot(part, up) * (row_scale * up_scale)[:, None]
            x_at += BLOCK_D
            w_at += BLOCK_D
        if SWIGLU:
            total = total * sigmoid(total) * up_total
        to = out + rows[:, None].to(tl.int64) * N + n[None, :]
        tl.store(to, total.to(out.dtype.element_ty), mask=(rows < last)[:, None] & (n < N)[None, :])
