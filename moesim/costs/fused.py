"""A whole MoE layer in one kernel (DeepGEMM's MegaMoE): exchange and experts overlap tile by tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.base.arrays import Array
from moesim.costs import constants as k
from moesim.costs.ports import ports
from moesim.costs.roofline import Device, gemm_s, together, uses_fp4, uses_fp8
from moesim.spec import BF16, FP8_BLOCK, ModelSpec

if TYPE_CHECKING:
    from moesim.cluster import Cluster


def fused_layer_s(slot_tokens: Array, tokens: Array, received: Array, cluster: Cluster, spec: ModelSpec) -> Array:
    """Return the seconds of the layer on each rank, [..., R], inside one NVLink domain.

    The activation never leaves the chip, so that the experts take their two GEMMs; what the kernel cannot hide of
    dispatch and combine, and adding up the results of the rank's own tokens, come on top.

    Parameters
    ----------
    slot_tokens
        Tokens per slot [..., R, C].
    tokens
        Tokens whose home each rank is [..., R].
    received
        Tokens that reach each rank, each once [..., R].
    """
    device, ranks = Device.of(cluster, uses_fp8(spec), uses_fp4(spec)), cluster.ranks
    m = np.asarray(slot_tokens, np.float64)
    wide = (2 if spec.gated else 1) * spec.intermediate
    active, pairs = (m > 0).sum(axis=-1), m.sum(axis=-1)
    experts = np.zeros(pairs.shape)
    for n, depth, element in ((wide, spec.hidden, spec.dispatch_bytes), (spec.hidden, spec.intermediate, FP8_BLOCK)):
        moved = active * n * depth * spec.weight_bytes + pairs * depth * element
        experts = experts + together(gemm_s(m, device, n, depth, k.FUSED_TILE_M), moved / device.hbm)
    own = tokens * (spec.top_k + 1) * spec.combine_token_bytes / device.copy
    travel = (received * spec.dispatch_token_bytes + pairs * spec.hidden * BF16) * (ranks - 1) / ranks
    sent = travel * ports(cluster).seconds_per_byte[:, 0]
    return np.asarray((k.FUSED_FLOOR_S.value + experts + own + k.FUSED_EXPOSED.value * sent) / device.speed)
