"""Picks of every expert in a run of steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.trace.batching import Batches
from moesim.trace.kernels import count_picks


def count_loads(batches: Batches) -> NDArray[np.float64]:
    """Return the picks of each expert, float64 [layers, experts]; a token that runs twice counts twice."""
    trace = batches.trace
    times = np.bincount(batches.token, minlength=trace.rows)
    loads = np.zeros((trace.layers, trace.spec.experts))
    for often in np.unique(times[times > 0]):
        rows = np.flatnonzero(times == often)
        picks = count_picks(trace.routes[rows], np.zeros(len(rows), np.int64), 1, trace.spec.experts)  # type: ignore[index]
        loads += often * picks[0]
    return loads
