"""Simulated annealing over slots: swap two copies, or put another expert where a spare copy sits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.base.compiled import ONE, ZERO, compiled, overwrite, plain, write_row
from moesim.placement.clock import working_s
from moesim.solve.rules import Rules, broken, fee, no_rules, undoing
from moesim.solve.search.cost import Prices, cost, network_s, powers_s, priced
from moesim.solve.search.reroute import outlook_cover, outlook_hashed, outlook_nearest, reroute, take_back
from moesim.solve.search.screen import Screen, at_best, guess, learn, look_again, look_at, make_screen
from moesim.solve.search.settle import settle
from moesim.solve.search.sharing import find_spots, keep_shares, share_anew, share_load
from moesim.solve.search.shift import shift, take, working
from moesim.solve.search.state import COVER, NEAREST, NOTHING, TOKENS, State, choose, evenly, refresh, spread
from moesim.trace.kernels import draw

MOVE: Final = 400
"""Work of a move beside the rows it touches, in rows: drawing it, pricing it, taking it back."""
_REFUSED: Final = 100
"""Work of a move that a constraint forbids."""
_GAIN: Final = 0.05
"""Most that one move is taken to save of the network's time: one that unbalances by more is not looked at further."""
_SAMPLED: Final = plain(4)
_DOUBT: Final = 0.003
"""Where rows are looked at one by one, one in so many is looked at first, and a move is given up where these make the
network slower by more than a doubt, a share of its time."""
MARGIN: Final = 1.0
"""How many times what guesses of the network's time are off by a move is given before it is counted."""
PIECES: Final = 20
"""Pieces of an annealing run; the clock is looked at between them."""


class Outcome(NamedTuple):
    """Starting and best cost in seconds, moves tried, and whether the clock cut the run short."""

    start_s: float
    best_s: float
    moves: int
    cut: bool


@compiled
def _place(slots: Any, held: Any, copies: Any, rank: int, slot: int, old: int, new: int) -> None:
    slots[rank, slot] = new
    if old >= 0:
        held[old, rank] = False
        copies[old] -= 1
    if new >= 0:
        held[new, rank] = True
        copies[new] += 1


@compiled
def _exchange(
    slots: Any, held: Any, copies: Any, rank: int, slot: int, other: int, other_slot: int, new: int
) -> None:  # fmt: skip
    """Put ``new`` into a slot, and what was there into the other slot if there is one."""
    old: Any = np.int64(slots[rank, slot])
    _place(slots, held, copies, rank, slot, old, new)
    if other >= 0:
        _place(slots, held, copies, other, other_slot, new, old)


@compiled
def _step(steps: Any, index: int, rank: int, slot: int, other: int, other_slot: int, old: int) -> None:
    steps[index, 0], steps[index, 1], steps[index, 2], steps[index, 3] = rank, slot, other, other_slot
    steps[index, 4] = old


@compiled
def _undo(slots: Any, held: Any, copies: Any, steps: Any, count: int) -> None:
    for index in range(count - 1, -1, -1):
        _exchange(
            slots, held, copies, steps[index, 0], steps[index, 1], steps[index, 2], steps[index, 3], steps[index, 4]
        )


@compiled
def _use_up(
    slots: Any, held: Any, copies: Any, rules: Rules, rng: Any, steps: Any, pair: Any, several: int, homeless: int
) -> int:
    """Use at once what giving back has freed of the move budget; return how many experts are in ``pair`` then, or 0.

    Where the budget is used up, a copy cannot go from one rank to another in two moves that each must pay. Half of the
    time the copy that had to go, ``homeless``, is put on another rank, where that is not -1; otherwise two copies
    anywhere are swapped.
    """
    ranks, most = slots.shape
    rank, slot = draw(rng) % ranks, draw(rng) % most
    if not rules.open[rank, slot]:
        return 0
    old = slots[rank, slot]
    other = other_slot = -1
    if homeless >= 0 and draw(rng) % 2 == 0:
        new = homeless
        if held[new, rank] or (old >= 0 and copies[old] < 2):
            return 0
    else:
        other, other_slot = draw(rng) % ranks, draw(rng) % most
        new = slots[other, other_slot]
        if other == rank or new == old or new < 0 or old < 0 or held[new, rank] or held[old, other]:
            return 0
    _step(steps, ONE, rank, slot, other, other_slot, old)
    _exchange(slots, held, copies, rank, slot, other, other_slot, new)
    for index in range(2):
        expert = steps[1, 4] if index else slots[rank, slot]
        known = expert < 0
        for before in range(several):
            known |= pair[before] == expert
        if not known:
            pair[several] = expert
            several += 1
    return several


@compiled
def _anneal(
    state: State,
    prices: Prices,
    rules: Rules,
    screen: Screen,
    margin: float,
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
    slots, held, copies, node, load = state.slots, state.held, state.copies, state.node, state.load
    demand, share, parts, serves = state.demand, state.share, state.part, state.serves
    policy, holder, scratch = state.policy[0], state.holder, state.scratch
    mode, landing, indptr, sets = state.mode[0], state.landing, state.indptr, state.sets
    some, more, node_some, node_more = state.on_rank.some, state.on_rank.more, state.on_node.some, state.on_node.more
    here, beside, worth, fit = screen.here, screen.near, screen.worth, screen.fit
    open_slots, budget = rules.open, rules.most[0]
    present, itself, left, came = state.counts, state.itself, state.left, state.came
    ranks, most = slots.shape
    experts = len(copies)
    spent, start, now, best, moves = progress[0], progress[1], progress[2], progress[3], progress[4]
    spare = copies.sum() > experts
    covered, near = policy == COVER, policy == NEAREST and mode != NOTHING
    shares = state.poured[0]
    blind = shares and mode == NOTHING
    # rows that are looked at one by one take long
    hashed = not covered and policy != NEAREST and mode != NOTHING
    even = evenly(policy, state.even)
    scenarios = load.shape[1]
    scale, worst = prices.scale, prices.worst[0]
    ruled = budget >= 0 or rules.hard[0] > 0
    priced_rules = rules.price[0] != 0.0 and len(rules.hot) > 0
    network = network_then = network_s(present, scale)
    counts = present.copy()
    sharing = share_load(state)
    work_of = working(load, scale)
    total, reference, each = work_of.total_then, work_of.reference, work_of.each
    # compute time if all ranks were even and as fast as the fastest: no placement's is less
    ideal, even_powers = np.zeros(scenarios), np.zeros(scenarios)
    for scenario in range(scenarios):
        for expert in range(experts):
            ideal[scenario] += demand[expert, scenario]
        ideal[scenario] *= scale[TOKENS].min() / ranks
        even_powers[scenario] = ranks
    level = priced(powers_s(even_powers, ranks, ideal, worst, each), prices)
    if shares:
        # poured from scratch it is a little other than move by move
        now = cost(state, prices) * (1 + fee(rules, held))
    # of the experts of a move: who serves them then, and who did
    column, column_was = np.zeros((4, ranks), np.int32), np.zeros((4, ranks), np.int32)
    served, served_was = np.zeros(4, np.int32), np.zeros(4, np.int32)
    part = np.zeros((4, ranks))
    pair = np.zeros(4, np.int64)
    # what is exchanged: rank, slot, other rank and slot if any, and what was in the first one
    steps = np.zeros((2, 5), np.int64)
    while spent < until:
        temperature = start * hot * (cold / hot) ** (spent / work)
        spent += MOVE
        rank = draw(rng) % ranks
        if draw(rng) % 4 == 0:
            # the fullest rank decides: it is looked at more often
            scenario = draw(rng) % scenarios
            for candidate in range(ranks):
                if load[candidate, scenario] > load[rank, scenario]:
                    rank = candidate
        slot = draw(rng) % most
        if not open_slots[rank, slot]:
            continue
        old = slots[rank, slot]
        other = other_slot = -1
        goes_on = False
        if budget >= 0 and draw(rng) % 3 == 0:
            turn = draw(rng) % (1 << 20)
            slot, other, other_slot, new = undoing(rules, slots, held, copies, rank, turn)
            if slot < 0:
                continue
            old = slots[rank, slot]
            goes_on = draw(rng) % 2 == 0
        elif spare and draw(rng) % 2 == 0:
            if old >= 0 and copies[old] < 2:
                continue
            new = draw(rng) % experts
            if held[new, rank]:
                continue
        else:
            other = draw(rng) % ranks
            other_slot = draw(rng) % most
            new = slots[other, other_slot]
            if other == rank or new == old or new < 0 or old < 0 or held[new, rank] or held[old, other]:
                continue
        _exchange(slots, held, copies, rank, slot, other, other_slot, new)
        pair[0], pair[1] = new, old
        several = 1 if old < 0 else 2
        _step(steps, ZERO, rank, slot, other, other_slot, old)
        stride = 1
        if goes_on:
            several = _use_up(slots, held, copies, rules, rng, steps, pair, several, old if spare else -1)
            stride = 2
        if several == 0 or (ruled and broken(rules, slots, held)):
            _undo(slots, held, copies, steps, stride if several else 1)
            spent -= MOVE - _REFUSED
            continue
        moves += 1
        limit = now - temperature * np.log((draw(rng) % (1 << 30) + 1) / (1 << 30))
        fees = 1 + fee(rules, held) if priced_rules else 1.0
        least = network * (1 - _GAIN)
        change = 0.0
        if stride == 1 and not blind:
            second = node[other] if other >= 0 else -1
            change = guess(here, beside, worth, node[rank], second, old, new)
            least = max(least, network + at_best(fit, change, margin))
            if shares and (level + least) * fees > limit:
                _undo(slots, held, copies, steps, stride)
                continue
        for index in range(several):
            if not blind:
                served[index] = choose(pair[index], held, copies, node, policy, holder, scratch, column, index)
            if not shares:
                spread(served[index], holder, share, even, column, part, index)
        if shares:
            spent += share_anew(sharing, slots, held, demand, pair, several, total)
        else:
            shift(work_of, load, parts, demand, pair, several, part)
        # most moves that unbalance need no look at their rows
        compute = priced(powers_s(total, ranks, reference, worst, each), prices)
        looked = not blind and (compute + least) * fees <= limit
        if looked and hashed:
            overwrite(counts, present)
            for index in range(several):
                spent += outlook_hashed(state, pair[index], column, index, served[index], counts, _SAMPLED)
            looked = (compute + network_s(counts, scale) - _DOUBT * network) * fees <= limit
        if looked and not covered:
            overwrite(counts, present)
            for index in range(several):
                if near:
                    spent += outlook_nearest(
                        sets, some, more, node_some, node_more, itself, node, landing, mode, indptr, pair[index],
                        serves, column, index, left, came, counts,
                    )  # fmt: skip
                elif hashed:
                    spent += outlook_hashed(state, pair[index], column, index, served[index], counts, ONE)
            seen = network_s(counts, scale)
            if stride == 1:
                learn(fit, change, seen - network)
            looked = (compute + seen) * fees <= limit
        refreshed = looked and covered
        if refreshed:
            overwrite(counts, present)
            # both are where they will be before a row that has both is looked at
            state.log[0, 0] = 0
            for expert in pair[:several]:
                refresh(state, expert)
            for index in range(several):
                spent += outlook_cover(state, pair[index], pair[0] if index else -1, counts, _SAMPLED)
            looked = (compute + network_s(counts, scale) - _DOUBT * network) * fees <= limit
        then = compute * fees if blind else np.inf
        if looked:
            overwrite(counts, present)
            for index in range(several):
                served_was[index] = state.served[pair[index]]
                write_row(column_was, index, serves[pair[index]])
                spent += reroute(state, pair[index], column, index, served[index])
            network_then = network_s(present, scale)
            if stride == 1 and covered:
                learn(fit, change, network_then - network)
            then = (compute + network_then) * fees
        if then <= limit:
            now, network = then, network_then
            if shares:
                keep_shares(sharing, load)
            else:
                take(work_of, load)
            for index in range(several if looked else 0):
                look_at(screen, node, held, pair[index])
                if not shares:
                    write_row(parts, pair[index], part[index])
            if now < best:
                best = now
                overwrite(best_slots, slots)
            continue
        _undo(slots, held, copies, steps, stride)
        if shares:
            for expert in pair[:several]:
                find_spots(sharing, slots, held, expert)
        if refreshed:
            take_back(state)
            for expert in pair[:several]:
                refresh(state, expert)
                state.before[expert] = state.mask[expert]
        elif looked:
            for index in range(several):
                spent += reroute(state, pair[index], column_was, index, served_was[index])
        if looked:
            overwrite(present, counts)
    progress[0], progress[2], progress[3], progress[4] = spent, now, best, moves


def anneal(
    state: State,
    prices: Prices,
    work: int,
    *,
    hot: float,
    cold: float,
    seed: int,
    stop_at: float = math.inf,
    each: Callable[[float, NDArray[np.int32]], bool] | None = None,
    rules: Rules | None = None,
    margin: float = MARGIN,
) -> Outcome:
    """Improve the placement in ``state`` by annealing and leave the best one there.

    Parameters
    ----------
    prices
        What counts are worth.
    work
        Rows to look at in all, `MOVE` for every move beside them.
    hot, cold
        First and last temperature, as shares of the starting cost.
    seed
        Seed of the moves; with equal ``work`` the answer is the same everywhere, unless the clock cuts it short.
    stop_at
        :func:`~moesim.placement.clock.working_s` at which to stop with the best so far.
    each
        Called between pieces with the share that is done and the best slots [ranks, slots], a view; returns whether
        to stop now.
    rules
        What moves must respect, as the placement in ``state`` does; nothing by default.
    margin
        How far off a guess of the network's time may be, in standard errors, for a move not to be counted that it
        speaks against; infinite: all moves are counted whose loads do not rule them out.
    """
    if rules is None:
        rules = no_rules(state.node, state.slots.shape[1], len(state.copies))
    start = float(cost(state, prices) * (1 + fee(rules, state.held)))
    progress = np.array([0.0, start, start, start, 0.0])
    best_slots = state.slots.copy()
    rng = np.array([seed], np.uint64)
    cut = False
    screen = make_screen(state)
    for piece in range(PIECES):
        if working_s() > stop_at or (each is not None and each(piece / PIECES, best_slots)):
            cut = True
            break
        until = work * (piece + 1) / PIECES
        look_again(screen, state)
        _anneal(state, prices, rules, screen, margin, rng, best_slots, progress, until, float(work), hot, cold)
    state.slots[:] = best_slots
    settle(state)
    return Outcome(start, float(progress[3]), int(progress[4]), cut)
