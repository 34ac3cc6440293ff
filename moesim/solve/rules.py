"""Constraints of one layer as arrays, and what a move of the search does to them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.base.compiled import compiled


class Rules(NamedTuple):
    """What the placement of a layer must respect.

    ``open`` bool [ranks, slots], slots that may be filled; ``was`` bool [experts, ranks], who holds what in the
    placement that runs; ``most`` int64 [1], experts that all ranks together may receive, negative: any number;
    ``hot`` int32 [hot experts] and ``nodes`` int64 [1], experts that need copies on so many nodes; ``hard`` int64 [1],
    whether they must have them; ``price`` float64 [1], cost of one that has not, as a share of the layer's time;
    ``node`` int32 [ranks].
    """

    open: Any
    was: Any
    most: Any
    hot: Any
    nodes: Any
    hard: Any
    price: Any
    node: Any


def no_rules(node: NDArray[np.int32], slots: int, experts: int) -> Rules:
    """Return rules that permit everything."""
    ranks = len(node)
    return Rules(
        np.ones((ranks, slots), np.bool_), np.zeros((experts, ranks), np.bool_), np.array([-1], np.int64),
        np.empty(0, np.int32), np.array([1], np.int64), np.array([0], np.int64), np.array([0.0]),
        np.array(node, np.int32),
    )  # fmt: skip


@compiled
def received(rules: Rules, slots: Any) -> int:
    """Return how many experts ranks must receive for ``slots`` int32 [ranks, slots]."""
    count = 0
    for rank in range(slots.shape[0]):
        for expert in slots[rank]:
            if expert >= 0 and not rules.was[expert, rank]:
                count += 1
    return count


@compiled
def on_nodes(rules: Rules, held: Any, expert: int, enough: int) -> bool:
    """Return whether ``held`` bool [experts, ranks] has copies of an expert on ``enough`` nodes."""
    if enough <= 1:
        return True
    first = -1
    found = 0
    for rank in range(len(rules.node)):
        if not held[expert, rank]:
            continue
        if enough == 2:
            if first >= 0 and rules.node[rank] != first:
                return True
            first = rules.node[rank]
            continue
        fresh = True
        for other in range(rank):
            if held[expert, other] and rules.node[other] == rules.node[rank]:
                fresh = False
                break
        found += fresh
        if found >= enough:
            return True
    return False


@compiled
def lonely(rules: Rules, held: Any) -> int:
    """Return how many hot experts have copies on too few nodes."""
    count = 0
    for expert in rules.hot:
        count += not on_nodes(rules, held, expert, rules.nodes[0])
    return count


@compiled
def broken(rules: Rules, slots: Any, held: Any) -> bool:
    """Return whether a placement breaks a rule that a move can break: the move budget, or the hard spread."""
    if rules.most[0] >= 0 and received(rules, slots) > rules.most[0]:
        return True
    return rules.hard[0] > 0 and len(rules.hot) > 0 and lonely(rules, held) > 0


@compiled
def undoing(rules: Rules, slots: Any, held: Any, copies: Any, rank: int, turn: int) -> tuple[int, int, int, int]:
    """Return a move that gives a rank back what it held: its slot, the slot it exchanges with if any, the expert.

    Under a move budget that is used up nothing else is permitted but what takes a move back, and drawing slots and
    experts at random finds that seldom. Returns (slot, other rank, other slot, expert), with -1 for no other rank, and
    a slot of -1 where there is nothing to give back. ``turn`` is where the looking begins.
    """
    count = slots.shape[1]
    slot = -1
    for step in range(count):
        candidate = (turn + step) % count
        here = slots[rank, candidate]
        if rules.open[rank, candidate] and (here < 0 or not rules.was[here, rank]):
            slot = candidate
            break
    if slot < 0:
        return -1, -1, -1, -1
    old = slots[rank, slot]
    experts, ranks = held.shape
    for step in range(experts):
        new = (turn + step) % experts
        if not rules.was[new, rank] or held[new, rank]:
            continue
        if old < 0 or copies[old] > 1:
            return slot, -1, -1, new
        for offset in range(ranks):
            other = (turn + offset) % ranks
            if held[new, other] and not rules.was[new, other] and not held[old, other]:
                for other_slot in range(count):
                    if slots[other, other_slot] == new:
                        return slot, other, other_slot, new
    return -1, -1, -1, -1


@compiled
def fee(rules: Rules, held: Any) -> float:
    """Return the price of hot experts that are not spread, as a share of the layer's time."""
    if rules.price[0] == 0.0 or len(rules.hot) == 0:
        return 0.0
    return float(rules.price[0] * lonely(rules, held))
