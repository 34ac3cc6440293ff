"""Device code of the grouped products: rows sorted by expert times that expert's weights, accumulated in float32.

Symbols: P rows (picks), E experts, D depth (summed over), N columns. Weights are `[E, D, N]`, or `[E, N, D]` where
`DEEP` is set (their last axis is summed over). `SWIGLU` weights hold 2 N columns: gates, then ups.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place_of(tile, blocks, columns, GROUP: tl.constexpr):
    """Return (block of rows, block of columns) of a tile: columns of `GROUP` neighbouring row blocks run together.

    Neighbouring row blocks mostly share an expert, so its weights come out of L2 for all but the first of them.
    """
    band = tile // (GROUP * columns)
    height = tl.minimum(blocks - band * GROUP, GROUP)
    inside = tile % (GROUP * columns)
    return band * GROUP + inside % height, inside // height


@triton.jit
def load_weights(w, expert, d, n, stride_e, stride_d, stride_n, D, N, EVEN_D: tl.constexpr, EVEN_N: tl.constexpr):
    """Load one block of an expert's weights [d, n]; zero outside of the matrix."""
    at = w + expert * stride_e + d[:, None].to(tl.int64) * stride_d + n[None, :].to(tl.int64) * stride_n
    if EVEN_D and EVEN_N:
        return tl.load(at)
    if EVEN_D:
        return tl.load(at, mask=n[None, :] < N, other=0.0)
    if EVEN_N:
        return tl.load(at, mask=d[:, None] < D, other=0.0)
    return tl.load(at, mask=(d[:, None] < D) & (n[None, :] < N), other=0.0)


@triton.jit
def sigmoid(x):
    """Return the logistic function of float32."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def grouped_tile(
    tile, x, w, out, before, source, offsets, expert_of, row_of, x_box, w_box, blocks, columns, D, N,
    stride_x, stride_e, stride_d, stride_n,
    SWIGLU: tl.constexpr, KEEP: tl.constexpr, GATHER: tl.constexpr, TOP_K: tl.constexpr, DEEP: tl.constexpr,
    EVEN_D: tl.constexpr, EVEN_N: tl.constexpr, BOX: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Compute one tile `[BLOCK_M, BLOCK_N]` of the grouped product."""
    block, column = place_of(tile, blocks, columns, GROUP)
    expert = tl.load(expert_of + block).to(tl.int64)
    first = tl.load(row_of + block)
    last = tl.load(offsets + expert + 1)
    rows = first + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_D)
    # rows past the expert's last repeat it: what they give is not stored
    held = tl.minimum(rows, last - 1)
    if GATHER:
        held = tl.load(source + held) // TOP_K
    x_at = x + held[:, None].to(tl.int64) * stride_x + depth[None, :]

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if SWIGLU:
        up_total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + depth
        if BOX:
            part = x_box.load([first, start])
        elif EVEN_D:
            part = tl.load(x_at)
        else:
            part = tl.load(x_at, mask=d[None, :] < D, other=0.0)
        if BOX and DEEP:
            weight = w_box.load([expert.to(tl.int32), column * BLOCK_N, start]).reshape(BLOCK_N, BLOCK_D).trans()
        elif BOX:
            weight = w_box.load([expert.to(tl.int32), start, column * BLOCK_N]).reshape(BLOCK_D, BLOCK_N)
        else:
            weight = load_weights(w, expert, d, n, stride_e, stride_d, stride_n, D, N, EVEN_D, EVEN_N)
        if WIDEN:
            part, weight = part.to(tl.float32), weight.to(tl.float32)
        total = tl.dot(part, weight, total, input_precision="ieee")
        if SWIGLU:
            if BOX and DEEP:
                up = w_box.load([expert.to(tl.int32), N + column * BLOCK_N, start]).reshape(BLOCK_N, BLOCK_D).trans()
            elif BOX:
                up = w_box.load([expert.to(tl.int32), start, N + column * BLOCK_N]).reshape(BLOCK_D, BLOCK_N)
            else:
                up = load_weights(
                    w + N.to(tl.int64) * stride_n, expert, d, n, stride_e, stride_d, stride_n, D, N, EVEN_D, EVEN_N
                )
            if WIDEN:
                up = up.to(tl.float32)
            up_total = tl.dot(part, up, up_total, input_precision="ieee")
        if not BOX:
            x_at += BLOCK_D

    kept = (rows < last)[:, None] & (n < N)[None, :]
    to = rows[:, None].to(tl.int64)
    if SWIGLU:
        if KEEP:
            # the backward pass needs what SwiGLU was applied to
            tl.store(before + to * (2 * N) + n[None, :], total.to(before.dtype.element_ty), mask=kept)
            tl.store(before + to * (2 * N) + N + n[None, :], up_total.to(before.dtype.element_ty), mask=kept)
        total = total * sigmoid(total) * up_total
    tl.store(out + to * N + n[None, :], total.to(out.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["P", "E", "bound", "ROWS", "SPREAD"])
def grouped(
    x, w, out, before, source, offsets, expert_of, row_of, totals, P, E, D, N, bound,
    stride_x, stride_e, stride_d, stride_n, ROWS, SPREAD,
    SWIGLU: tl.constexpr, KEEP: tl.constexpr, GATHER: tl.constexpr, TOP_K: tl.constexpr, DEEP: tl.constexpr,
    EVEN_D: tl.constexpr, EVEN_N: tl.constexpr, WIDEN: tl.constexpr,
    LEVEL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
    BOX: tl.constexpr, PERSISTENT: tl.constexpr,
):  # fmt: skip
    """Grouped product of `x` [P, D] and `w`: one program a tile, or, if `PERSISTENT`, each every so-many-th tile.

    How many tiles there are is known on the device alone (`totals`), so programs past the last one leave at once.
    `ROWS` (of an expert) and `SPREAD` (experts) are keys of the tuning: both rounded up to powers.
    """
    blocks = tl.load(totals + LEVEL)
    columns = tl.cdiv(N, BLOCK_N)
    tiles = blocks * columns
    expert_of += LEVEL * bound
    row_of += LEVEL * bound
    x_box, w_box = x, w
    if BOX:
        x_box = tl.make_tensor_descriptor(x, [P, D], [stride_x, 1], [BLOCK_M, BLOCK_D])
        width = N
        if SWIGLU:
            width = 2 * N
        if DEEP:
            w_box = tl.make_tensor_descriptor(w, [E, width, D], [stride_e, stride_n, 1], [1, BLOCK_N, BLOCK_D])
        else:
            w_box = tl.make_tensor_descriptor(w, [E, D, width], [stride_e, stride_d, 1], [1, BLOCK_D, BLOCK_N])
    if PERSISTENT:
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            grouped_tile(
                tile, x, w, out, before, source, offsets, expert_of, row_of, x_box, w_box, blocks, columns, D, N,
                stride_x, stride_e, stride_d, stride_n, SWIGLU, KEEP, GATHER, TOP_K, DEEP, EVEN_D, EVEN_N, BOX,
                WIDEN, BLOCK_M, BLOCK_N, BLOCK_D, GROUP,
            )  # fmt: skip
    else:
        tile = tl.program_id(0)
        if tile < tiles:
            grouped_tile(
                tile, x, w, out, before, source, offsets, expert_of, row_of, x_box, w_box, blocks, columns, D, N,
                stride_x, stride_e, stride_d, stride_n, SWIGLU, KEEP, GATHER, TOP_K, DEEP, EVEN_D, EVEN_N, BOX,
                WIDEN, BLOCK_M, BLOCK_N, BLOCK_D, GROUP,
            )  # fmt: skip


@triton.jit(do_not_specialize=["ROWS"])
def weight_gradient(
    x, g, out, offsets, D, N, stride_x, stride_g, ROWS,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Gradient of the weights: `out[e] = x[rows of e]^T g[rows of e]`, `[E, D, N]`; zeros where an expert had none."""
    down, across = tl.cdiv(D, BLOCK_D), tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    expert = (program // (down * across)).to(tl.int64)
    block_d, block_n = place_of(program % (down * across), down, across, GROUP)
    first, last = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    d = block_d * BLOCK_D + tl.arange(0, BLOCK_D)
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_D, BLOCK_N), tl.float32)
    for start in range(first, last, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        held = row[:, None] < last
        inside = (row < last)[None, :] & (d[:, None] < D)
        left = tl.load(x + row[None, :].to(tl.int64) * stride_x + d[:, None], mask=inside, other=0.0)
        right = tl.load(g + row[:, None].to(tl.int64) * stride_g + n[None, :], mask=held & (n[None, :] < N), other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision="ieee")
    to = out + expert * D * N + d[:, None].to(tl.int64) * N + n[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=(d[:, None] < D) & (n[None, :] < N))
