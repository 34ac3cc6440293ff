"""What the routing of a trace is like, layer by layer, and how it compares with real models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array, Sealed, seal
from moesim.trace.trace import PHASES, Trace
from moesim.trace.unpicked import unpicked_layers

WINDOWS: Final = 4
"""Windows of equal length between which drift is measured."""
_PICKS_PER_EXPERT: Final = 20
"""Domains and windows with fewer picks in a layer than this times E are not compared: noise would pass for drift."""


@dataclass(frozen=True, eq=False)
class Statistics(Sealed):
    """Statistics of a trace, float64 [layers] each; NaN where the trace cannot tell.

    Parameters
    ----------
    max_over_mean
        Load of the busiest expert over the mean load.
    gini
        Gini coefficient of the loads: 0 = balanced.
    entropy
        Entropy of the loads over log E: 1 = balanced.
    coactivation_bits
        Kullback-Leibler divergence, in bits, of the pairs of experts that tokens pick together from those that
        popularity alone would give.
    lift_p99
        99th percentile over pairs of (share of the pair) / (share that popularity alone would give it).
    adjacent_bits
        Mutual information, in bits, of an expert picked in the layer before and one picked in this one; NaN in
        the first layer.
    reuse
        Share of a token's experts that the previous token of the same request had picked too.
    reuse_iid
        The same, were tokens drawn independently.
    domain_bits
        Jensen-Shannon divergence, in bits, between the loads of two domains, mean over pairs of domains.
    drift_bits
        The same between a quarter of the trace and the next one, in the order of steps or rows, mean.
    """

    max_over_mean: Array
    gini: Array
    entropy: Array
    coactivation_bits: Array
    lift_p99: Array
    adjacent_bits: Array
    reuse: Array
    reuse_iid: Array
    domain_bits: Array
    drift_bits: Array

    def __post_init__(self) -> None:
        layers = len(self.max_over_mean)
        for field in dataclasses.fields(self):
            seal(self, field.name, getattr(self, field.name), np.float64, ("layers",), {"layers": layers})

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a statistic: its minimum, median and maximum over the layers, None where unknown."""
        rows = []
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            values = values[np.isfinite(values)]
            low, middle, high = np.quantile(values, [0, 0.5, 1]).tolist() if values.size else (None, None, None)
            rows.append({"statistic": field.name, "min": low, "median": middle, "max": high})
        return rows

    def layer_rows(self) -> list[dict[str, Any]]:
        """Return one row a layer with every statistic, None where unknown."""
        fields = [field.name for field in dataclasses.fields(self)]
        table = np.stack([getattr(self, name) for name in fields], axis=1)
        return [
            {
                "layer": layer,
                **{name: value if np.isfinite(value) else None for name, value in zip(fields, row, strict=True)},
            }
            for layer, row in enumerate(table.tolist())
        ]


def statistics(trace: Trace) -> Statistics:
    """Return the statistics of a trace; those of single tokens are NaN where it holds counts only."""
    loads = trace.loads.astype(np.float64)
    total = loads.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = loads / total
        max_over_mean = loads.max(axis=1) / loads.mean(axis=1)
        gini = _gini(loads)
        entropy = _entropy(share) / np.log2(max(trace.spec.experts, 2))
    entropy[total[:, 0] == 0] = np.nan
    unknown = np.full(trace.layers, np.nan)
    bits, lift, adjacent, reuse, iid = (unknown.copy() for _ in range(5))
    if trace.routes is not None and trace.tokens:
        for layer in range(trace.layers):
            bits[layer], lift[layer] = _coactivation(trace.routes[:, layer], loads[layer])
            if layer:
                adjacent[layer] = _mutual_information(trace.routes[:, layer - 1], trace.routes[:, layer], len(loads[0]))
        reuse = _reuse(trace)
        with np.errstate(invalid="ignore", divide="ignore"):
            iid = ((loads / trace.tokens) ** 2).sum(axis=1) / (total[:, 0] / trace.tokens)
    return Statistics(
        max_over_mean=max_over_mean,
        gini=gini,
        entropy=entropy,
        coactivation_bits=bits,
        lift_p99=lift,
        adjacent_bits=adjacent,
        reuse=reuse,
        reuse_iid=iid,
        domain_bits=_domain_bits(trace),
        drift_bits=_drift_bits(trace),
    )


def describe(trace: Trace) -> dict[str, Any]:
    """Return plain data about a trace, with stable keys, for ``moesim inspect``."""
    spec = trace.spec
    return {
        "kind": "trace",
        "content": "counts" if trace.routes is None else "tokens",
        "model": spec.name,
        "layers": spec.layers,
        "experts": spec.experts,
        "top_k": spec.top_k,
        "tokens": trace.tokens,
        "steps": trace.steps,
        "requests": 0 if trace.routes is None else len(np.unique(trace.request)),
        "rows_by_phase": _tally(trace.phase, PHASES),
        "rows_by_domain": _tally(trace.domain, trace.domains),
        "weights": trace.weights is not None,
        "recorded_steps": trace.has_steps,
        "recorded_sources": bool(trace.rows) and bool((trace.source >= 0).all()),
        "empty_picks": 0 if trace.routes is None else int((trace.routes < 0).sum()),
        "unpicked_layers": unpicked_layers(trace),
        "synthetic": bool(trace.origin.get("synthetic", False)),
        "origin": dict(trace.origin),
        "digest": trace.digest,
        "statistics": {
            row["statistic"]: {key: row[key] for key in ("min", "median", "max")} for row in statistics(trace).rows()
        },
    }


def window_loads(trace: Trace, windows: int) -> Array:
    """Return the picks of each expert in windows of equal length, int64 [windows, layers, experts].

    Windows go in the order of recorded steps, else of rows.
    """
    order = np.argsort(trace.step, kind="stable") if trace.has_steps else np.arange(trace.rows)
    window = np.empty(trace.rows, np.int64)
    window[order] = np.arange(trace.rows) * windows // max(trace.rows, 1)
    return trace.loads_by(window, windows)


def jensen_shannon(first: Array, second: Array) -> Array:
    """Return the Jensen-Shannon divergence, in bits, of two sets of loads [..., experts]; NaN where one is empty."""
    with np.errstate(invalid="ignore", divide="ignore"):
        p = first / first.sum(axis=-1, keepdims=True)
        q = second / second.sum(axis=-1, keepdims=True)
    divergence: Array = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    # rounding may leave a tiny negative number where both are equal
    return np.maximum(divergence, 0.0)


def _tally(codes: Array, names: tuple[str, ...]) -> dict[str, int]:
    numbers = np.bincount(codes, minlength=len(names)).tolist()
    return {name: number for name, number in zip(names, numbers, strict=True) if number}


def _entropy(share: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        bits: Array = -np.sum(np.where(share == 0, 0.0, share * np.log2(share)), axis=-1)
    return bits


def _gini(loads: Array) -> Array:
    E = loads.shape[-1]
    rank = np.arange(1, E + 1)
    gini: Array = 2 * (np.sort(loads, axis=-1) * rank).sum(axis=-1) / (E * loads.sum(axis=-1)) - (E + 1) / E
    return gini


def _coactivation(routes: Array, load: Array) -> tuple[float, float]:
    from moesim.trace.kernels import count_pairs

    upper = np.triu_indices(len(load), 1)
    pairs = count_pairs(routes, routes, len(load))[upper].astype(np.float64)
    null = np.outer(load, load)[upper]
    possible = null > 0
    if not pairs.sum() or not possible.any():
        return np.nan, np.nan
    share, expected = pairs[possible] / pairs.sum(), null[possible] / null.sum()
    lift = share / expected
    seen = share > 0
    return float((share[seen] * np.log2(lift[seen])).sum()), float(np.quantile(lift, 0.99))


def _mutual_information(before: Array, after: Array, experts: int) -> float:
    from moesim.trace.kernels import count_pairs

    joint = count_pairs(before, after, experts).astype(np.float64)
    if not joint.sum():
        return float("nan")
    joint /= joint.sum()
    return float(_entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0)) - _entropy(joint.ravel()))


def _reuse(trace: Trace) -> Array:
    from moesim.trace.kernels import count_reuse

    order = np.lexsort((trace.position, trace.request))
    request, position = trace.request[order], trace.position[order].astype(np.int64)
    follows = np.flatnonzero((request[1:] == request[:-1]) & (position[1:] == position[:-1] + 1))
    before, after = order[follows], order[follows + 1]
    routes: Any = trace.routes
    with np.errstate(invalid="ignore", divide="ignore"):
        picks = np.zeros(trace.layers)
        for layer in range(trace.layers):
            picks[layer] = (routes[after, layer] >= 0).sum()
        share: Array = count_reuse(routes, before, after) / picks
    return share


def _domain_bits(trace: Trace) -> Array:
    loads = trace.domain_loads().astype(np.float64)
    loads = loads[(loads.sum(axis=-1) >= _PICKS_PER_EXPERT * trace.spec.experts).all(axis=-1)]
    if len(loads) < 2:
        return np.full(trace.layers, np.nan)
    pairs = [jensen_shannon(loads[i], loads[i + 1 :]).sum(axis=0) for i in range(len(loads) - 1)]
    return np.asarray(np.sum(pairs, axis=0) / (len(loads) * (len(loads) - 1) / 2))


def _drift_bits(trace: Trace) -> Array:
    loads = window_loads(trace, WINDOWS).astype(np.float64)
    if loads.sum(axis=-1).min() < _PICKS_PER_EXPERT * trace.spec.experts:
        return np.full(trace.layers, np.nan)
    return np.asarray(jensen_shannon(loads[:-1], loads[1:]).mean(axis=0))
