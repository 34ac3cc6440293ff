"""A layer in one kernel: what bounds it, and where skew makes it faster."""

from __future__ import annotations

import dataclasses

import numpy as np

from moesim.base.arrays import Array
from moesim.costs.constants import FUSED_FLOOR_S
from moesim.costs.fused import fused_layer_s
from moesim.spec import MXFP4, ModelSpec

from .worlds import preset

SPEC = dataclasses.replace(ModelSpec.preset("deepseek-v3"), weight_bytes=MXFP4, dispatch_bytes=1 + 1 / 32)
RACK = preset("gb200-nvl72").restrict(range(8))


def busiest_s(loads: Array, tokens: float = 64.0) -> float:
    slots = np.zeros((8, len(loads)))
    slots[0] = loads
    received = np.minimum(slots.sum(axis=1), 8 * tokens)
    return float(fused_layer_s(slots, np.full(8, tokens), received, RACK, SPEC)[0])


def test_an_idle_layer_costs_its_floor():
    assert busiest_s(np.zeros(32), 0.0) == FUSED_FLOOR_S.value


def test_fewer_experts_are_faster_at_small_batch_and_more_tokens_slower_at_large():
    assert busiest_s(np.full(32, 2.0)) > 1.3 * busiest_s(np.array([8.0] * 8 + [0.0] * 24))
    # arithmetic: three times the tokens take longer, less than three times as the rank's own tokens are the same
    balanced, skewed = (busiest_s(np.full(32, load), 4096.0) for load in (1024.0, 3072.0))
    assert 2.3 < skewed / balanced < 3


def test_never_faster_than_its_weights():
    weights = 32 * SPEC.expert_bytes / RACK.hbm_bandwidth[0]
    assert busiest_s(np.ones(32)) > weights + FUSED_FLOOR_S.value
