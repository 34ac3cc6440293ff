"""The fast path: how many copies each expert gets, and which rank holds them, by load alone.

Copies go greedily to the expert with the most load per copy (which minimises the largest load per copy), copies
go heaviest first to the lightest rank that may hold them, and pairs are swapped between the fullest rank and
others while that lowers the fuller of the two. Milliseconds for a whole model, within a percent of the mean load.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.base.compiled import compiled
from moesim.solve.repair import EMPTY, repair_duplicates

Ints = NDArray[np.int32]

_ENOUGH = 1e-3
"""How far above the mean the fullest rank may stay: less is below what tomorrow's traffic differs by."""


@compiled
def _copies(load: Any, slots: int, most: int) -> Any:
    layers, experts = load.shape
    copies = np.ones((layers, experts), np.int32)
    for layer in range(layers):
        share = load[layer].copy()
        for _ in range(min(slots, most * experts) - experts):
            best = -1
            for expert in range(experts):
                if copies[layer, expert] < most and (best < 0 or share[expert] > share[best]):
                    best = expert
            copies[layer, best] += 1
            share[best] = load[layer, best] / copies[layer, best]
    return copies


def greedy_copies(load: ArrayLike, slots: int, most: int) -> Ints:
    """Return copies of each expert, int32 [layers, experts]: ``slots`` in all, at most ``most`` each.

    A copy goes to the expert with the most load per copy, which minimises the largest load per copy.
    """
    copies: Ints = _copies(np.ascontiguousarray(load, dtype=np.float64), slots, most)
    return copies


def copies_by_weight(load: ArrayLike, copies: Ints) -> tuple[Ints, Ints]:
    """Return every copy of every expert, heaviest load per copy first: ``expert [L, S]`` and its count ``[L]``.

    Rows are padded with -1; equal loads keep the order of expert ids, and copies of one expert stay together.
    """
    share = np.asarray(load, dtype=np.float64) / copies
    order = np.argsort(-share, axis=1, kind="stable").astype(np.int32)
    count = copies.sum(axis=1).astype(np.int32)
    expert = np.full((len(share), int(count.max())), EMPTY, np.int32)
    for layer, row in enumerate(order):
        expert[layer, : count[layer]] = np.repeat(row, copies[layer, row])
    return expert, count


@compiled
def _lightest(share: Any, item: Any, count: Any, speed: Any, experts: Any) -> None:
    """Heaviest copy first to the rank that then finishes first; fills ``experts`` [L, R, C]."""
    layers, ranks, slots = experts.shape
    total = share.shape[1]
    pace = 1 / speed
    held = np.zeros((total, ranks), np.bool_)
    load = np.zeros(ranks)
    used = np.zeros(ranks, np.int32)
    for layer in range(layers):
        load[:], used[:], held[:] = 0, 0, False
        for position in range(count[layer]):
            expert = item[layer, position]
            more = share[layer, expert]
            taken = held[expert]
            best, soonest = -1, np.inf
            for rank in range(ranks):
                finish = (load[rank] + more) * pace[rank]
                if finish < soonest and used[rank] < slots and not taken[rank]:
                    best, soonest = rank, finish
            if best < 0:
                # only ranks that hold it have room: the repair moves it
                for rank in range(ranks):
                    finish = (load[rank] + more) * pace[rank]
                    if finish < soonest and used[rank] < slots:
                        best, soonest = rank, finish
            experts[layer, best, used[best]] = expert
            used[best] += 1
            held[expert, best] = True
            load[best] += more


def lightest_first(load: ArrayLike, ranks: int, slots: int, speed: ArrayLike | None = None) -> Ints:
    """Return the LPT placement, int32 [layers, ranks, slots]: heaviest copy first, to the lightest rank.

    Parameters
    ----------
    load
        Load of each expert, [layers, experts].
    speed
        Relative speed of each rank, [ranks]; equal ones by default.
    """
    load = np.ascontiguousarray(load, dtype=np.float64)
    copies = greedy_copies(load, ranks * slots, ranks)
    item, count = copies_by_weight(load, copies)
    experts = np.full((len(load), ranks, slots), EMPTY, np.int32)
    pace = np.ones(ranks) if speed is None else np.array(speed, dtype=np.float64)
    _lightest(load / copies, item, count, pace, experts)
    return repair_duplicates(experts, load)[0]


@compiled
def _swap(experts: Any, load: Any, speed: Any, rounds: int) -> None:
    """Swap copies between the slowest rank and others while the slower of the two gets faster; in place."""
    layers, ranks, slots = experts.shape
    total_experts = load.shape[1]
    pace = 1 / speed
    for layer in range(layers):
        copies = np.zeros(total_experts, np.int32)
        held = np.zeros((ranks, total_experts), np.bool_)
        for rank in range(ranks):
            for slot in range(slots):
                expert = experts[layer, rank, slot]
                if expert >= 0:
                    copies[expert] += 1
                    held[rank, expert] = True
        # the extra entry stands for an empty slot (index -1)
        share = np.zeros(total_experts + 1)
        total = np.zeros(ranks)
        for expert in range(total_experts):
            if copies[expert] > 0:
                share[expert] = load[layer, expert] / copies[expert]
        for rank in range(ranks):
            for slot in range(slots):
                total[rank] += share[experts[layer, rank, slot]]
        mean = total.sum() / speed.sum()
        for _ in range(rounds):
            worst = lightest = 0
            for rank in range(ranks):
                if total[rank] * pace[rank] > total[worst] * pace[worst]:
                    worst = rank
                if total[rank] * pace[rank] < total[lightest] * pace[lightest]:
                    lightest = rank
            peak = total[worst] * pace[worst]
            if peak <= mean * (1 + _ENOUGH):
                break
            best, best_rank, best_slot, best_mine = peak * (1 - 1e-9), -1, -1, -1
            for step in range(ranks):
                # the lightest first: most others then cannot do better, since a swap at best evens out both
                other = (lightest + step) % ranks
                if other == worst or total[worst] + total[other] >= best * (speed[worst] + speed[other]):
                    continue
                for mine in range(slots):
                    give = experts[layer, worst, mine]
                    if give < 0 or held[other, give]:
                        continue
                    for slot in range(slots):
                        take = experts[layer, other, slot]
                        moved = share[give] - share[take]
                        if moved <= 0 or (take >= 0 and held[worst, take]):
                            continue
                        after = max((total[worst] - moved) * pace[worst], (total[other] + moved) * pace[other])
                        if after < best:
                            best, best_rank, best_slot, best_mine = after, other, slot, mine
            if best_rank < 0:
                break
            give = experts[layer, worst, best_mine]
            take = experts[layer, best_rank, best_slot]
            experts[layer, worst, best_mine] = take
            experts[layer, best_rank, best_slot] = give
            held[worst, give] = False
            held[best_rank, give] = True
            if take >= 0:
                held[worst, take] = True
                held[best_rank, take] = False
            moved = share[give] - share[take]
            total[worst] -= moved
            total[best_rank] += moved


def balance(load: ArrayLike, ranks: int, slots: int, speed: ArrayLike | None = None, rounds: int = 400) -> Ints:
    """Return a placement balanced by load, int32 [layers, ranks, slots]: LPT, then swaps.

    Parameters
    ----------
    load
        Load of each expert, [layers, experts].
    speed
        Relative speed of each rank, [ranks]; equal ones by default.
    rounds
        Most swaps in a layer.
    """
    load = np.ascontiguousarray(load, dtype=np.float64)
    experts = lightest_first(load, ranks, slots, speed)
    pace = np.ones(ranks) if speed is None else np.array(speed, dtype=np.float64)
    _swap(experts, load, pace, rounds)
    return experts


def rank_loads(experts: Ints, load: ArrayLike) -> NDArray[np.float64]:
    """Return the load of each rank, [layers, ranks], when the copies of an expert share it equally."""
    load = np.asarray(load, dtype=np.float64)
    layers, total = load.shape
    flat = np.where(experts < 0, total, experts).reshape(layers, -1)
    copies = np.zeros((layers, total + 1))
    np.add.at(copies, (np.arange(layers)[:, None], flat), 1)
    copies[:, total] = 1
    share = np.concatenate([load, np.zeros((layers, 1))], axis=1) / np.maximum(copies, 1)
    return np.asarray(np.take_along_axis(share, flat, axis=1).reshape(experts.shape).sum(axis=2))
