"""Attention and gate of one layer per rank: projections, scores, KV cache, weights; data- or tensor-parallel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.costs import constants as k
from moesim.costs.ports import group_seconds_per_byte
from moesim.costs.roofline import Device, gemm_share, hbm_share, uses_fp8
from moesim.costs.transports.channels import collective_floor
from moesim.costs.tuned import tuned
from moesim.spec import BF16, FP8_BLOCK, Attention, ModelSpec

if TYPE_CHECKING:
    from moesim.cluster import Cluster

_KERNELS: Final = 8  # two norms, projections in, attention, projection out, gate, top-k, quantisation
_QUERY_TILE: Final = 128  # queries that share one read of the cache in prefill (FlashAttention block M)


def sources(cluster: Cluster) -> dict[str, str]:
    """Return the constants of attention and where they come from."""
    return {
        "attention: share of peak in prefill": str(tuned(cluster, "attention_share", k.ATTENTION_SHARE)),
        "attention: share of peak in projections": str(gemm_share(cluster)),
        "attention: HBM share": str(hbm_share(cluster)),
        "attention: launch": str(k.LAUNCH_S),
        "attention: query tile": "assumed: 128 queries share one read of the KV cache in prefill",
    }


def attention_s(tokens: Array, context: Array, decode: bool, cluster: Cluster, spec: ModelSpec, tp: int = 1) -> Array:
    """Return the seconds of attention and gate in one layer [..., R].

    Parameters
    ----------
    tokens
        Tokens of each rank [..., R].
    context
        Sum over those tokens of the positions each attends to [..., R].
    decode
        One query a request (the cache is read once per token, MLA in absorbed form) or a chunk of a prompt.
    tp
        Ranks that share the attention of their tokens, in runs of consecutive ranks: every rank holds a part of the
        heads (of GQA at least one KV head, of MLA the whole latent cache) and sees the tokens of all. Tokens are
        gathered before and partial sums scattered after, by NCCL.
    """
    tokens, context = np.asarray(tokens, np.float64), np.asarray(context, np.float64)
    gate_tokens, exchange = tokens, np.zeros(1)
    if tp > 1:
        tokens, context = grouped(tokens, tp), grouped(context, tp)
        exchange = exchange_s(tokens, cluster, spec, tp)
    # block-scaled fp8 models quantise all linear layers; models with narrower experts keep attention in bf16
    fp8 = uses_fp8(spec) and spec.weight_bytes >= 1
    device, plain = Device.of(cluster, fp8), Device.of(cluster, fp8=False)
    element = FP8_BLOCK if fp8 else BF16
    gate = spec.hidden * spec.experts
    weights = gate * BF16
    moved = tokens * spec.hidden * BF16 * 6  # residual, two norms, in and out of attention and gate
    seconds = 2.0 * gate_tokens * gate / plain.flops
    shape = spec.attention
    if shape is not None:
        parameters = shape.parameters(spec.hidden) / tp
        weights += parameters * element
        seconds = seconds + 2.0 * tokens * parameters / device.flops
    seconds = np.maximum(seconds, (np.where(tokens > 0, weights, 0.0) + moved) / device.hbm)
    if shape is not None:
        share = tuned(cluster, "attention_share", k.ATTENTION_SHARE)
        score = context * _score_flops(shape, decode) / tp / (cluster.flops_bf16 * share.value)
        cache = shape.cache_elements() / (1 if shape.latent else min(tp, shape.kv_heads))
        reads = context * cache * BF16 / (1 if decode else _QUERY_TILE)
        seconds = seconds + np.maximum(score, reads / device.hbm)
    return np.asarray((seconds + _KERNELS * k.LAUNCH_S.value) / cluster.speed + exchange)


def grouped(values: Array, tp: int) -> Array:
    """Return for each rank the sum over the ``tp`` consecutive ranks it shares attention with [..., R]."""
    groups = values.reshape(*values.shape[:-1], -1, tp).sum(axis=-1, keepdims=True)
    return np.broadcast_to(groups, (*groups.shape[:-1], tp)).reshape(values.shape)


def exchange_s(tokens: Array, cluster: Cluster, spec: ModelSpec, tp: int) -> Array:
    """Return the seconds of gathering the group's tokens and scattering its sums."""
    moved = tokens * spec.hidden * BF16 * (tp - 1) / tp
    return 2 * (moved * group_seconds_per_byte(cluster, tp) + collective_floor(cluster, tp).value)


def _score_flops(shape: Attention, decode: bool) -> float:
    """Return FLOPs of one query and one position; prefill expands the latent of MLA, decode absorbs it."""
    if decode or not shape.latent:
        return shape.score_flops()
    return 2.0 * shape.heads * (shape.head_dim + shape.rope_dim + shape.value_dim)
