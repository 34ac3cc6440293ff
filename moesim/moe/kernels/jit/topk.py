"""Device code of the router's choice: gate function, group limit, top-k and weights in one pass; a program a token."""

from __future__ import annotations

import triton
import triton.language as tl

from moesim.moe.kernels.jit.gemm import sigmoid


@triton.jit
def largest(score, at):
    """Return the largest of `score` and its index, the smallest one among equals."""
    best = tl.max(score, axis=0)
    return best, tl.min(tl.where(score == best, at, 1 << 30), axis=0)


@triton.jit
def pick(
    logits, bias, experts, weights, E, stride, scale,
    SIGMOID: tl.constexpr, BIASED: tl.constexpr, NORMALISE: tl.constexpr, GROUPS: tl.constexpr, LIMIT: tl.constexpr,
    TOP_K: tl.constexpr, SLOTS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """Choose `TOP_K` experts of a token and their weights.

    Gates are a softmax or sigmoids of the logits; the choice goes by gate (plus bias), inside of the `LIMIT` groups
    whose two best scores add up highest; weights come from the gates alone.
    """
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, EXPERTS)
    inside = at < E
    logit = tl.load(logits + token * stride + at, mask=inside, other=float("-inf")).to(tl.float32)
    if SIGMOID:
        gate = sigmoid(logit)
    else:
        power = tl.exp(logit - tl.max(logit, axis=0))
        gate = power / tl.sum(power, axis=0)
    score = gate
    if BIASED:
        score += tl.load(bias + at, mask=inside, other=0.0)
    score = tl.where(inside, score, float("-inf"))
    if LIMIT < GROUPS:
        score = limit_groups(score, at, E, GROUPS, LIMIT, EXPERTS)
    slot = tl.arange(0, SLOTS)
    chosen = tl.zeros((SLOTS,), tl.int32)
    value = tl.zeros((SLOTS,), tl.float32)
    for k in tl.static_range(TOP_K):
        _, index = largest(score, at)
        score = tl.where(at == index, float("-inf"), score)
        mine = tl.sum(tl.where(at == index, gate, 0.0), axis=0)
        chosen = tl.where(slot == k, index, chosen)
        value = tl.where(slot == k, mine, value)
    if NORMALISE:
        value = value / (tl.sum(value, axis=0) + 1e-9)
    tl.store(experts + token * TOP_K + slot, chosen.to(experts.dtype.element_ty), mask=slot < TOP_K)
    tl.store(weights + token * TOP_K + slot, value * scale, mask=slot < TOP_K)


@triton.jit
def limit_groups(score, at, E, GROUPS: tl.constexpr, LIMIT: tl.constexpr, EXPERTS: tl.constexpr):
    """Return the scores with all groups but the best `LIMIT` struck out."""
    group = at // (E // GROUPS)
    worth = tl.full((EXPERTS,), float("-inf"), tl.float32)  # of group g at index g
    for g in tl.static_range(GROUPS):
        own = tl.where(group == g, score, float("-inf"))
        first, index = largest(own, at)
        second, _ = largest(tl.where(at == index, float("-inf"), own), at)
        # a group of one expert has no second best
        worth = tl.where(at == g, first + tl.where(second == float("-inf"), 0.0, second), worth)
    open_to = at < 0
    for _ in tl.static_range(LIMIT):
        _, index = largest(worth, at)
        worth = tl.where(at == index, float("-inf"), worth)
        open_to = open_to | (group == index)
    return tl.where(open_to, score, float("-inf"))


@triton.jit
def pick_backward(
    logits, experts, grad, out, E, stride, scale, SIGMOID: tl.constexpr, NORMALISE: tl.constexpr,
    TOP_K: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits from that of the weights; the choice itself has none."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, EXPERTS)
    inside = at < E
    logit = tl.load(logits + token * stride + at, mask=inside, other=float("-inf")).to(tl.float32)
    if SIGMOID:
        gate = sigmoid(logit)
    else:
        power = tl.exp(logit - tl.max(logit, axis=0))
        gate = power / tl.sum(power, axis=0)
    to_gate = tl.zeros((EXPERTS,), tl.float32)
    picked = at < 0
    for k in tl.static_range(TOP_K):
        mine = at == tl.load(experts + token * TOP_K + k).to(tl.int32)
        to_gate += tl.where(mine, tl.load(grad + token * TOP_K + k).to(tl.float32) * scale, 0.0)
        picked = picked | mine
    if NORMALISE:
        total = tl.sum(tl.where(picked, gate, 0.0), axis=0) + 1e-9
        mean = tl.sum(to_gate * tl.where(picked, gate, 0.0), axis=0) / total
        to_gate = tl.where(picked, (to_gate - mean) / total, 0.0)
    if SIGMOID:
        result = to_gate * gate * (1.0 - gate)
    else:
        result = gate * (to_gate - tl.sum(to_gate * gate, axis=0))
    tl.store(out + token * E + at, result.to(out.dtype.element_ty), mask=inside)
