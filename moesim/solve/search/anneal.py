"""Simulated annealing over slots: swap two copies, or put another expert where a spare copy sits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.placement.kernels import compiled
from moesim.solve.rules import Rules, broken, fee, no_rules
from moesim.solve.search.state import TOKENS, State, refresh, reroute, settle

MOVE: Final = 100
"""Work of a move beside the rows it touches, in rows: drawing it, pricing it, taking it back."""
PIECES: Final = 20
"""Pieces of an annealing run; the clock is looked at between them."""


class Outcome(NamedTuple):
    """Starting and best cost in seconds, moves tried, and whether the clock cut the run short."""

    start_s: float
    best_s: float
    moves: int
    cut: bool


@compiled
def _power(value: float) -> float:
    square = value * value
    fourth = square * square
    return fourth * fourth


@compiled
def cost(load: Any, scale: Any, worst: int = 0) -> float:
    """Return the smooth layer time in seconds, mean over windows, or over the slowest ``worst`` of them.

    The slowest rank and the slowest link decide, so both enter as power means (exponents 16 and 8): close to the
    largest, yet every rank counts a little, which gives the search a slope to walk down.

    Parameters
    ----------
    load
        Counts, int64 [windows, counters, ranks].
    scale
        Seconds of one count, float64 [counters, ranks].
    """
    windows, counters, ranks = load.shape
    total = 0.0
    each = np.empty(windows)
    for window in range(windows):
        compute = top = 0.0
        for rank in range(ranks):
            top = max(top, load[window, TOKENS, rank] * scale[TOKENS, rank])
        if top > 0:
            for rank in range(ranks):
                eighth = _power(load[window, TOKENS, rank] * scale[TOKENS, rank] / top)
                compute += eighth * eighth
            compute = top * (compute / ranks) ** (1 / 16)
        network = top = 0.0
        for counter in range(1, counters):
            for rank in range(ranks):
                top = max(top, load[window, counter, rank] * scale[counter, rank])
        if top > 0:
            for counter in range(1, counters):
                for rank in range(ranks):
                    network += _power(load[window, counter, rank] * scale[counter, rank] / top)
            network = top * (network / (ranks * 2)) ** (1 / 8)
        each[window] = compute + network
        total += compute + network
    if 0 < worst < windows:
        return float(np.sort(each)[windows - worst :].sum() / worst)
    return float(total / windows)


@compiled
def _draw(rng: Any, count: int) -> int:
    """Return a whole number below ``count``; SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) on ``rng`` uint64 [1]."""
    rng[0] += np.uint64(0x9E3779B97F4A7C15)
    mixed = rng[0]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(33)) % count


@compiled
def _place(state: State, rank: int, slot: int, old: int, new: int) -> None:
    state.slots[rank, slot] = new
    if old >= 0:
        state.held[old, rank] = False
        state.copies[old] -= 1
    if new >= 0:
        state.held[new, rank] = True
        state.copies[new] += 1


@compiled
def _anneal(
    state: State,
    scale: Any,
    rules: Rules,
    worst: int,
    rng: Any,
    best_slots: Any,
    progress: Any,
    until: float,
    work: float,
    hot: float,
    cold: float,
) -> None:
    """Go on annealing until ``progress[0]``, the work done, reaches ``until``.

    ``progress`` float64 [5]: work done, starting, present and best cost, moves tried. The present placement stays in
    ``state``, the best one in ``best_slots``.
    """
    ranks, slots = state.slots.shape
    experts = len(state.copies)
    spent, start, now, best, moves = progress[0], progress[1], progress[2], progress[3], progress[4]
    load = state.load.copy()
    spare = state.copies.sum() > experts
    while spent < until:
        temperature = start * hot * (cold / hot) ** (spent / work)
        spent += MOVE
        rank = _draw(rng, ranks)
        slot = _draw(rng, slots)
        if not rules.open[rank, slot]:
            continue
        old = state.slots[rank, slot]
        other = other_slot = -1
        if spare and _draw(rng, 2) == 0:
            if old >= 0 and state.copies[old] < 2:
                continue
            new = _draw(rng, experts)
            if state.held[new, rank]:
                continue
        else:
            other = _draw(rng, ranks)
            other_slot = _draw(rng, slots)
            new = state.slots[other, other_slot]
            if other == rank or new == old or new < 0 or old < 0 or state.held[new, rank] or state.held[old, other]:
                continue
        moves += 1
        load[:] = state.load
        _place(state, rank, slot, old, new)
        if other >= 0:
            _place(state, other, other_slot, new, old)
        if broken(rules, state.slots, state.held):
            _place(state, rank, slot, new, old)
            if other >= 0:
                _place(state, other, other_slot, old, new)
            continue
        if old >= 0:
            spent += reroute(state, old)
        spent += reroute(state, new)
        then = cost(state.load, scale, worst) * (1 + fee(rules, state.held))
        if then <= now or _draw(rng, 1 << 30) < (1 << 30) * np.exp((now - then) / temperature):
            now = then
            if now < best:
                best = now
                best_slots[:] = state.slots
        else:
            _place(state, rank, slot, new, old)
            if other >= 0:
                _place(state, other, other_slot, old, new)
            if old >= 0:
                refresh(state, old)
            refresh(state, new)
            state.load[:] = load
    progress[0], progress[2], progress[3], progress[4] = spent, now, best, moves


def anneal(
    state: State,
    scale: NDArray[np.float64],
    work: int,
    *,
    hot: float,
    cold: float,
    seed: int,
    stop_at: float = math.inf,
    each: Callable[[float, NDArray[np.int32]], bool] | None = None,
    rules: Rules | None = None,
    worst: int = 0,
) -> Outcome:
    """Improve the placement in ``state`` by annealing and leave the best one there.

    Parameters
    ----------
    scale
        Seconds of one count, float64 [counters, ranks].
    work
        Rows to look at in all, `MOVE` for every move beside them.
    hot, cold
        First and last temperature, as shares of the starting cost.
    seed
        Seed of the moves; with equal ``work`` the answer is the same everywhere, unless the clock cuts it short.
    stop_at
        ``time.monotonic()`` at which to stop with the best so far.
    each
        Called between pieces with the share that is done and the best slots [ranks, slots], a view; returns whether
        to stop now.
    rules
        What moves must respect, as the placement in ``state`` does; nothing by default.
    worst
        Average only the slowest so many windows; 0: all.
    """
    if rules is None:
        rules = no_rules(state.node, state.slots.shape[1], len(state.copies))
    start = float(cost(state.load, scale, worst) * (1 + fee(rules, state.held)))
    progress = np.array([0.0, start, start, start, 0.0])
    best_slots = state.slots.copy()
    rng = np.array([seed], np.uint64)
    cut = False
    for piece in range(PIECES):
        if time.monotonic() > stop_at or (each is not None and each(piece / PIECES, best_slots)):
            cut = True
            break
        until = work * (piece + 1) / PIECES
        _anneal(state, scale, rules, worst, rng, best_slots, progress, until, float(work), hot, cold)
    state.slots[:] = best_slots
    settle(state)
    return Outcome(start, float(progress[3]), int(progress[4]), cut)
