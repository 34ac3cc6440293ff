"""Which experts, windows and domains resemble one another: the matrices behind the statistics of a trace."""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.trace.stats import jensen_shannon, window_loads
from moesim.trace.trace import Trace


def pair_lift(trace: Trace, layer: int) -> Array:
    """Return how often tokens pick two experts together, over what popularity alone would give.

    Returns
    -------
    float64 [experts, experts], symmetric; NaN on the diagonal and for experts that are never picked.

    Raises
    ------
    InputError
        If the trace holds counts only, which tell nothing of pairs.
    """
    from moesim.trace.kernels import count_pairs

    if trace.routes is None:
        raise InputError("co-activation: the trace holds counts only; record the picks of every token")
    routes = trace.routes[:, layer]
    pairs = count_pairs(routes, routes, trace.spec.experts).astype(np.float64)
    np.fill_diagonal(pairs, 0.0)
    load = trace.loads[layer].astype(np.float64)
    null = np.outer(load, load)
    np.fill_diagonal(null, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift: Array = (pairs / pairs.sum()) / (null / null.sum())
    lift[null == 0] = np.nan
    return lift


def window_divergence(trace: Trace, windows: int, layer: int | None = None) -> Array:
    """Return how different the loads of windows of equal length are, in bits [windows, windows].

    Windows go in the order of recorded steps, else of rows. A single layer, or the mean over all.
    """
    return _divergence(window_loads(trace, windows), layer)


def domain_divergence(trace: Trace, layer: int | None = None) -> Array:
    """Return how different the loads of domains are, in bits [domains, domains]; see :func:`window_divergence`."""
    return _divergence(trace.domain_loads(), layer)


def _divergence(loads: Array, layer: int | None) -> Array:
    chosen = loads.astype(np.float64) if layer is None else loads[:, layer : layer + 1].astype(np.float64)
    bits: Array = jensen_shannon(chosen[:, None], chosen[None, :]).mean(axis=-1)
    return np.nan_to_num(bits, nan=0.0)
