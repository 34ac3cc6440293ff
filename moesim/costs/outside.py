"""What a step needs outside its MoE layers: dense decoder layers, embedding look-up, output head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.costs import constants as k
from moesim.costs.roofline import Device, gemm_share, mlp_s, uses_fp8
from moesim.spec import BF16, ModelSpec

if TYPE_CHECKING:
    from moesim.cluster import Cluster

_HEAD_KERNELS: Final = 3  # last norm, head, argmax or softmax


def sources(cluster: Cluster) -> dict[str, str]:
    """Return the constants of what is outside the MoE layers and where they come from."""
    share = gemm_share(cluster).value
    return {
        "outside: output head": f"assumed: bf16 on every rank for its own tokens, share of peak {share:g}",
        "outside: dense layers": "assumed: attention and a dense MLP by the constants of the experts' roofline",
    }


def outside_s(attention: Array, tokens: Array, logits: Array, cluster: Cluster, spec: ModelSpec) -> Array:
    """Return the seconds of a forward pass outside its MoE layers on each rank [R].

    Parameters
    ----------
    attention
        Seconds of attention in one layer, dense or not [R].
    tokens
        Tokens of each rank [R].
    logits
        Tokens of each rank that need the output head [R].
    """
    tokens, logits = np.asarray(tokens, np.float64), np.asarray(logits, np.float64)
    seconds = np.zeros(cluster.ranks)
    if spec.dense_layers:
        layer = np.asarray(attention, np.float64)
        if spec.dense_intermediate:
            device = Device.of(cluster, uses_fp8(spec))
            layer = layer + mlp_s(tokens[:, None], device, spec, spec.dense_intermediate, permuted=False)
        seconds = seconds + spec.dense_layers * layer
    if spec.vocab:
        plain = Device.of(cluster, fp8=False)
        weights = np.where(logits > 0, spec.vocab * spec.hidden * BF16, 0.0)
        moved = tokens * spec.hidden * BF16 * 2 + logits * spec.vocab * BF16 + weights
        busy = np.maximum(2.0 * logits * spec.vocab * spec.hidden / plain.flops, moved / plain.hbm)
        seconds = seconds + (busy + _HEAD_KERNELS * k.LAUNCH_S.value) / cluster.speed
    return np.asarray(seconds)
