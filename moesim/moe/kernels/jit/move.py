"""Device code of what stands around the products: rows to experts and back, SwiGLU's gradient, quantisation."""

from __future__ import annotations

import triton
import triton.language as tl

from moesim.moe.kernels.jit.gemm import sigmoid


@triton.jit
def permute(x, order, out, rows_end, H, stride_x, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """Copy the token of each row's pick to its row: `out[r] = x[order[r] // TOP_K]`; one program a row."""
    row = tl.program_id(0)
    if row < tl.load(rows_end):
        token = (tl.load(order + row) // TOP_K).to(tl.int64)
        for start in range(0, H, BLOCK):
            at = start + tl.arange(0, BLOCK)
            value = tl.load(x + token * stride_x + at, mask=at < H, other=0.0)
            tl.store(out + row.to(tl.int64) * H + at, value, mask=at < H)


@triton.jit
def unpermute(y, place, weights, out, H, TOP_K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """Add up the results of a token's picks: `out[t] = sum over k of weights[t, k] y[place[t, k]]`, in float32.

    No atomics: each token's sum is made by one program in the order of its picks, the same every time.
    """
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(TOP_K):
        row = tl.load(place + token * TOP_K + k).to(tl.int64)
        if row >= 0:
            value = tl.load(y + row * H + at, mask=at < H, other=0.0).to(tl.float32)
            if WEIGHTED:
                value *= tl.load(weights + token * TOP_K + k).to(tl.float32)
            total += value
    tl.store(out + token * H + at, total.to(out.dtype.element_ty), mask=at < H)


@triton.jit
def unpermute_backward(
    grad, y, place, weights, grad_y, grad_weights, H, stride_g, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    """Gradients of `unpermute`: of the rows, `weights[t, k] grad[t]`, and of the weights, `grad[t] . y[row]`."""
    pick = tl.program_id(0).to(tl.int64)
    token = pick // TOP_K
    row = tl.load(place + pick).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    if row >= 0:
        weight = tl.load(weights + pick).to(tl.float32)
        for start in range(0, H, BLOCK):
            at = start + tl.arange(0, BLOCK)
            g = tl.load(grad + token * stride_g + at, mask=at < H, other=0.0).to(tl.float32)
            value = tl.load(y + row * H + at, mask=at < H, other=0.0).to(tl.float32)
            tl.store(grad_y + row * H + at, (g * weight).to(grad_y.dtype.element_ty), mask=at < H)
            total += g * value
    tl.store(grad_weights + pick, tl.sum(total).to(grad_weights.dtype.element_ty))


@triton.jit
def swiglu_backward(before, grad, grad_before, act, rows_end, N, BLOCK: tl.constexpr):
    """Gradient of SwiGLU `[P, 2 N]` from that of its result `[P, N]`; writes the result again beside it."""
    row = tl.program_id(0)
    if row < tl.load(rows_end):
        n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = n < N
        base = row.to(tl.int64)
        gate = tl.load(before + base * 2 * N + n, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(before + base * 2 * N + N + n, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + base * N + n, mask=inside, other=0.0).to(tl.float32)
        share = sigmoid(gate)
        silu = gate * share
        to_gate = g * up * (share + silu * (1.0 - share))
        tl.store(grad_before + base * 2 * N + n, to_gate.to(grad_before.dtype.element_ty), mask=inside)
        tl.store(grad_before + base * 2 * N + N + n, (g * silu).to(grad_before.dtype.element_ty), mask=inside)
        tl.store(act + base * N + n, (silu * up).to(act.dtype.element_ty), mask=inside)


@triton.jit
def quantise(x, out, scales, rows_end, H, stride_x, LIMIT: tl.constexpr, BLOCK: tl.constexpr):
    """Quantise rows to fp8 with one float32 scale for each `BLOCK` neighbouring elements."""
    row = tl.program_id(0)
    if row < tl.load(rows_end):
        block = tl.program_id(1)
        at = block * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + row.to(tl.int64) * stride_x + at, mask=at < H, other=0.0).to(tl.float32)
        # a row of zeros must not divide by zero
        scale = tl.maximum(tl.max(tl.abs(value)), 1e-12) / LIMIT
        narrow = tl.clamp(value / scale, -LIMIT, LIMIT).to(out.dtype.element_ty)
        tl.store(out + row.to(tl.int64) * H + at, narrow, mask=at < H)
        tl.store(scales + row.to(tl.int64) * tl.cdiv(H, BLOCK) + block, scale)
