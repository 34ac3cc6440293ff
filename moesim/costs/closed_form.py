"""One MoE step in max-plus form: per-rank clocks through dispatch, experts and combine, without global barriers.

Shared by ``solve`` (the score of a placement) and ``simulate`` (whose engine must equal it where nothing overlaps).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled
from moesim.costs.types import Timing


class Clocks(NamedTuple):
    """When each rank is through with each part of one layer, seconds [R].

    ``gate``: attention, gate and a sequential shared expert; ``arrived``: its tokens are there; ``experts``; ``home``:
    its results are back and the next layer may start.
    """

    gate: Array
    arrived: Array
    experts: Array
    home: Array


def layer_clocks(
    start: Array,
    attention: Array,
    dispatch: Timing,
    experts: Array,
    combine: Timing,
    shared: Array | None = None,
    *,
    layer: int = 0,
    overlap: bool = False,
) -> Clocks:
    """Return the clocks of one layer.

    Parameters
    ----------
    start
        When each rank enters the layer [R].
    attention, experts, shared
        Seconds of each rank [R].
    dispatch, combine
        Timings of the whole batch; ``layer`` says which row.
    overlap
        Whether the shared expert runs beside dispatch on its own stream, or before it.

    Notes
    -----
    ``arrived[d]`` is the latest of: ``min(gate) + arrive_s[d]``; for every s with bytes for d, ``gate[s] +
    min(own_s[s] + drain_s, arrive_s[d])`` (a late sender delays who waits for it, by what its bytes need alone), and
    ``gate[s] + floor_s + rest[s, d] * (arrive_s[d] - floor_s)``, where ``rest`` is the part of d's bytes that comes
    from s and from senders that are ready no earlier, by the time that their own bytes need (nobody can have drained
    before s was ready what had not been sent by then); where every rank waits for a word of every rank, ``gate[s] +
    floor_s``; ``gate[d]``. The way home is the same.
    """
    extra = np.zeros_like(start) if shared is None else shared
    gate = start + attention if overlap else start + attention + extra
    arrived = received(gate, dispatch, layer)
    done = arrived + experts
    home = received(done, combine, layer)
    return Clocks(gate, arrived, done, np.maximum(home, gate + extra) if overlap else home)


def received(ready: Array, timing: Timing, layer: int) -> Array:
    """Return when every rank has its inbound bytes [R] where senders start at ``ready`` [R]."""
    return _received(
        np.ascontiguousarray(ready, np.float64),
        timing.arrive_s[layer],
        timing.own_s[layer],
        timing.drain_s[layer],
        timing.senders[layer],
        timing.floor_s[layer],
        timing.everyone,
    )


@compiled
def _received(
    ready: Array, arrive: Array, own: Array, drain: float, senders: Array, floor: float, everyone: bool
) -> Array:
    ranks = ready.size
    first, last = ready.min(), ready.max()
    out = np.empty(ranks)
    if first == last:
        for d in range(ranks):
            out[d] = ready[d] + arrive[d]
        return out
    for d in range(ranks):
        out[d] = max(first + arrive[d], ready[d])
        if everyone:
            out[d] = max(out[d], last + min(floor, arrive[d]))
    alone = own + drain
    total, before = np.zeros(ranks), np.zeros(ranks)
    for s in range(ranks):
        weight = max(alone[s] - floor, 0.0)
        for d in range(ranks):
            total[d] += weight if senders[s, d] else 0.0
    # what each second of senders' own bytes that is still to come takes, and what comes before it
    factor, base = np.zeros(ranks), np.zeros(ranks)
    for d in range(ranks):
        if total[d] > 0.0 and arrive[d] > floor:
            factor[d], base[d] = (arrive[d] - floor) / total[d], floor
    for s in np.argsort(ready, kind="mergesort"):
        weight = max(alone[s] - floor, 0.0)
        for d in range(ranks):
            # without a branch, so that several ranks are done at once
            rest = base[d] + (total[d] - before[d]) * factor[d]
            out[d] = max(out[d], ready[s] + max(min(alone[s], arrive[d]), rest)) if senders[s, d] else out[d]
            before[d] += weight if senders[s, d] else 0.0
    return out


def step_clocks(
    attention: Array,
    dispatch: Timing,
    experts: Array,
    combine: Timing,
    shared: Array | None = None,
    *,
    start: Array | None = None,
    overlap: bool = False,
) -> Array:
    """Return when each rank is through with all layers of a step [R].

    Parameters
    ----------
    attention, shared
        Seconds [R], or [L, R] where layers differ.
    experts
        Seconds [L, R].
    """
    layers, ranks = experts.shape
    clock = np.zeros(ranks) if start is None else np.asarray(start, np.float64)
    every_attention = np.broadcast_to(attention, (layers, ranks))
    every_shared = None if shared is None else np.broadcast_to(shared, (layers, ranks))
    for layer in range(layers):
        extra = None if every_shared is None else every_shared[layer]
        clock = layer_clocks(
            clock, every_attention[layer], dispatch, experts[layer], combine, extra, layer=layer, overlap=overlap
        ).home
    return clock


def step_time(
    attention: Array,
    dispatch: Timing,
    experts: Array,
    combine: Timing,
    shared: Array | None = None,
    *,
    start: Array | None = None,
    overlap: bool = False,
) -> float:
    """Return the seconds of a whole step with no overlap between batches: the last rank of the last layer."""
    return float(step_clocks(attention, dispatch, experts, combine, shared, start=start, overlap=overlap).max())
