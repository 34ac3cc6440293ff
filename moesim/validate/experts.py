"""Expert compute of one rank in a measured row, and the roofline without tiles as its null predictor."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from moesim.base.arrays import Array
from moesim.costs import constants as k
from moesim.costs.roofline import DEEPGEMM, Device, Kernel, Roofline, roofline, uses_fp4, uses_fp8
from moesim.spec import ModelSpec
from moesim.validate.machines import machine


@lru_cache(maxsize=64)
def _model(name: str, spec: ModelSpec, kernel: Kernel) -> Roofline:
    return roofline(spec, machine(name, 1, 1), kernel=kernel)


def experts_s(name: str, spec: ModelSpec, loads: Array, kernel: Kernel = DEEPGEMM) -> float:
    """Return the seconds of the routed experts of one rank from tokens per slot [slots]."""
    where = machine(name, 1, 1)
    return float(_model(name, spec, kernel)(np.asarray(loads, np.float64)[None, None, :], where, spec)[0, 0])


def null_s(name: str, spec: ModelSpec, loads: Array) -> float:
    """Return the roofline without tiles: all tokens at 0.75 of peak, or the weights of experts that have tokens."""
    device = Device.of(machine(name, 1, 1), uses_fp8(spec), uses_fp4(spec))
    busy = float(np.sum(loads)) * spec.expert_flops / float(device.flops[0])
    weights = float(np.count_nonzero(loads)) * spec.expert_bytes / float(device.hbm[0])
    return max(busy, weights) + 5 * k.LAUNCH_S.value
