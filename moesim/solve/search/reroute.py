"""What a move does to the counts: looking ahead, carrying it out, and taking it back."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from moesim.base.compiled import ONE, compiled, write_row
from moesim.solve.search.bits import Sets, carry, look
from moesim.solve.search.cover import count_cover, cover_row
from moesim.solve.search.state import (
    COVER,
    DIRECT,
    INSIDE_IN,
    INSIDE_OUT,
    NEAREST,
    NIC_IN,
    NIC_OUT,
    NOTHING,
    PER_NODE,
    PER_RANK,
    State,
    pick_key,
    serving_rank,
)

HASHING: Final = 16
_HASHING_LOOK: Final = 8
COVERING: Final = 24
"""Work of a row whose copies are chosen by hash, carried or looked at, or whose nodes are covered anew."""
LOOKING: Final = 2
CARRYING: Final = 10
_HOME: Final = 4
"""Work of 64 rows that are looked at or carried among nearest copies, and of a home whose copy is another."""


@compiled
def edge(counts: Any, node: Any, home: int, target: int, amount: int) -> None:
    """Count copies from a home to a rank, over its card or inside the node."""
    if home == target:
        return
    if node[home] == node[target]:
        counts[INSIDE_OUT, home] += amount
        counts[INSIDE_IN, target] += amount
    else:
        counts[NIC_OUT, home] += amount
        counts[NIC_IN, target] += amount


@compiled
def hop(counts: Any, landing: int, target: int, amount: int) -> None:
    """Count copies from where they land to a rank of that node."""
    # a copy that stays on its landing rank passes through the copy engine all the same
    counts[INSIDE_OUT, landing] += amount
    counts[INSIDE_IN, target] += amount


@compiled
def moved(
    counts: Any, node: Any, landing: Any, mode: int, home: int, old: int, new: int, total: int, left: Any, came: Any
) -> None:
    """Count picks that go from rank ``old`` to ``new``; ``left``, ``came``: rows that thereby leave or reach a place.

    Both are (ranks, nodes): rows with no other pick on that rank, and none on that node.
    """
    if mode == DIRECT:
        edge(counts, node, home, old, -total)
        edge(counts, node, home, new, total)
    elif mode == PER_RANK:
        edge(counts, node, home, old, -left[0])
        edge(counts, node, home, new, came[0])
    elif mode == PER_NODE:
        landed, lands = landing[home, node[old]], landing[home, node[new]]
        hop(counts, landed, old, -left[0])
        hop(counts, lands, new, came[0])
        if node[old] == node[new]:
            return
        if node[old] != node[home]:
            counts[NIC_OUT, home] -= left[1]
            counts[NIC_IN, landed] -= left[1]
        if node[new] != node[home]:
            counts[NIC_OUT, home] += came[1]
            counts[NIC_IN, lands] += came[1]


@compiled
def tally(
    counts: Any, node: Any, landing: Any, mode: int, indptr: Any, expert: int, before: Any, after: Any, index: int,
    left: Any, came: Any,
) -> int:  # fmt: skip
    """Count what it changes that ``after[index]`` serves an expert instead of ``before[expert]``; return the work.

    Parameters
    ----------
    left, came
        Of each home's rows those that leave a rank, and reach one, int64 [ranks]; the second of each two, nodes.
    """
    ranks = len(node)
    looked = 0
    for home in range(ranks):
        old, new = before[expert, home], after[index, home]
        if old == new:
            continue
        looked += _HOME
        if mode == DIRECT:
            total = indptr[expert * ranks + home + 1] - indptr[expert * ranks + home]
            edge(counts, node, home, old, -total)
            edge(counts, node, home, new, total)
        elif mode == PER_RANK:
            edge(counts, node, home, old, -left[0, home])
            edge(counts, node, home, new, came[0, home])
        else:
            own, there, here = node[home], node[old], node[new]
            landed, lands = landing[home, there], landing[home, here]
            hop(counts, landed, old, -left[0, home])
            hop(counts, lands, new, came[0, home])
            if there != own:
                counts[NIC_OUT, home] -= left[1, home]
                counts[NIC_IN, landed] -= left[1, home]
            if here != own:
                counts[NIC_OUT, home] += came[1, home]
                counts[NIC_IN, lands] += came[1, home]
    return looked


@compiled
def reroute(state: State, expert: int, serves: Any, index: int, served: int) -> int:
    """Bring table and counts up to date with ``state.held[expert]``; return the work done.

    ``serves[index]``, ``served``: column and count of :func:`choose`, not those in the state itself.
    """
    if state.policy[0] == COVER:
        looked = _reroute_cover(state, expert, state.before[expert])
        state.before[expert] = state.mask[expert]
        return looked
    if state.policy[0] != NEAREST:
        return _reroute_hashed(state, expert, serves[index], served)
    mode, node, before = state.mode[0], state.node, state.serves
    left, came, sets = state.left, state.came, state.sets
    looked = 0
    if mode in (PER_RANK, PER_NODE):
        looked += CARRYING * carry(sets, state.on_rank, state.itself, expert, before, serves, index, left[0], came[0])
    if mode == PER_NODE:
        looked += CARRYING * carry(sets, state.on_node, node, expert, before, serves, index, left[1], came[1])
    if mode != NOTHING:
        looked += tally(
            state.counts, node, state.landing, mode, state.indptr, expert, before, serves, index, left, came
        )
    write_row(before, expert, serves[index])
    state.served[expert] = served
    return looked


@compiled
def outlook_nearest(
    sets: Sets, some: Any, more: Any, node_some: Any, node_more: Any, itself: Any, node: Any, landing: Any, mode: int,
    indptr: Any, expert: int, before: Any, after: Any, index: int, left: Any, came: Any, counts: Any,
) -> int:  # fmt: skip
    """Change ``counts`` about as :func:`reroute` would among nearest copies; return the work done.

    The arrays are those of the state; ``after[index]`` is the column that :func:`reroute` would be given.

    Looks only, so that a move that is not taken costs one look. Of two experts of one move each is looked at as if the
    other stayed: a place that one leaves and the other reaches then seems to lose the row. Two that leave, or reach,
    the same place seem to cost one copy too many, but nearest copies do so only where far ones are dealt anew.
    """
    looked = 0
    if mode != DIRECT:
        looked += LOOKING * look(sets, some, more, itself, expert, before, after, index, left[0], came[0])
    if mode == PER_NODE:
        looked += LOOKING * look(sets, node_some, node_more, node, expert, before, after, index, left[1], came[1])
    return looked + tally(counts, node, landing, mode, indptr, expert, before, after, index, left, came)


@compiled
def outlook_hashed(state: State, expert: int, serves: Any, index: int, served: int, counts: Any, every: int) -> int:
    """Do what :func:`outlook_nearest` does where copies are hashed, from one row in ``every``, standing for so many."""
    ranks, mode, node, policy = len(state.node), state.mode[0], state.node, state.policy[0]
    present, before = state.serves[expert], state.served[expert]
    first, last = state.indptr[expert * ranks], state.indptr[(expert + 1) * ranks]
    for position in range(first + expert % every, last, every):
        row: Any = np.int64(state.rows[position])
        key = pick_key(policy, state.key, row, expert)
        old, new = present[key % before if before > 1 else 0], serves[index, key % served if served > 1 else 0]
        if old == new:
            continue
        left = came = (0, 0)
        if mode != DIRECT:
            left_rank, came_rank = every * (state.at_rank[old, row] == 1), every * (state.at_rank[new, row] == 0)
            left_node = came_node = 0
            if mode == PER_NODE and node[old] != node[new]:
                left_node = every * (state.at_node[node[old], row] == 1)
                came_node = every * (state.at_node[node[new], row] == 0)
            left, came = (left_rank, left_node), (came_rank, came_node)
        home: Any = np.int64(state.home[row])
        moved(counts, node, state.landing, mode, home, old, new, every, left, came)
    return _HASHING_LOOK * int(last - first) // every


@compiled
def _leaves(at: Any, row: int, place: int) -> int:
    """Take one pick of a row off a place; return 1 if it was the last one there."""
    at[place, row] -= np.uint8(1)
    return int(at[place, row] == 0)


@compiled
def _comes(at: Any, row: int, place: int) -> int:
    """Put one pick of a row on a place; return 1 if it is the first one there."""
    at[place, row] += np.uint8(1)
    return int(at[place, row] == 1)


@compiled
def _reroute_cover(state: State, expert: int, before: Any) -> int:
    """Cover the rows of an expert anew; what changes is logged, so that it can be taken back."""
    ranks, nodes = state.landing.shape
    filled = np.int64(state.log[0, 0])
    looked = 0
    after = state.mask[expert]
    if after == before:
        return 0
    for home in range(ranks):
        own = state.node[home]
        if before & after & np.uint64(1) << np.uint64(4 * own):
            continue  # served at home before and after
        first, last = state.indptr[expert * ranks + home], state.indptr[expert * ranks + home + 1]
        looked += last - first
        for position in range(first, last):
            row: Any = np.int64(state.rows[position])
            visited = state.visits[row]
            now = cover_row(state.routes[row], state.mask, own, row, nodes)
            if now != visited:
                filled += 1
                state.log[filled, 0], state.log[filled, 1] = row, visited
                state.visits[row] = now
                count_cover(state.counts, state.landing[home], home, visited & ~now, -ONE)
                count_cover(state.counts, state.landing[home], home, now & ~visited, ONE)
    state.log[0, 0] = filled
    return COVERING * looked


@compiled
def outlook_cover(state: State, expert: int, other: int, counts: Any, every: int) -> int:
    """Change ``counts`` about as :func:`reroute` would under ``COVER``, from one row in ``every``; return the work.

    ``state.mask`` is that after the move, ``state.before`` that before it; rows that pick ``other`` too are left out.
    """
    ranks, nodes = state.landing.shape
    before, after = state.before[expert], state.mask[expert]
    looked = 0
    if after == before:
        return 0
    for home in range(ranks):
        own = state.node[home]
        if before & after & np.uint64(1) << np.uint64(4 * own):
            continue  # served at home before and after
        first, last = state.indptr[expert * ranks + home], state.indptr[expert * ranks + home + 1]
        # cells are short: begin elsewhere in each, so that every row has its turn
        for position in range(first + (expert + home) % every, last, every):
            row: Any = np.int64(state.rows[position])
            both = False
            for expert_of_row in state.routes[row]:
                both |= other >= 0 and expert_of_row == other
            if both:
                continue
            looked += 1
            visited = state.visits[row]
            now = cover_row(state.routes[row], state.mask, own, row, nodes)
            if now != visited:
                count_cover(counts, state.landing[home], home, visited & ~now, -every)
                count_cover(counts, state.landing[home], home, now & ~visited, every)
    return COVERING * looked


@compiled
def take_back(state: State) -> None:
    """Restore the visits that have changed since ``log`` was cleared."""
    filled = int(state.log[0, 0])
    for position in range(filled, 0, -1):
        state.visits[state.log[position, 0]] = state.log[position, 1]
    state.log[0, 0] = 0


@compiled
def _reroute_hashed(state: State, expert: int, serves: Any, served: int) -> int:
    ranks, mode, node, policy = len(state.node), state.mode[0], state.node, state.policy[0]
    before = state.served[expert]
    holder = state.serves[expert, :before].copy()
    write_row(state.serves, expert, serves)
    state.served[expert] = served
    first, last = state.indptr[expert * ranks], state.indptr[(expert + 1) * ranks]
    if mode == NOTHING:
        return 0
    for position in range(first, last):
        row: Any = np.int64(state.rows[position])
        home: Any = np.int64(state.home[row])
        old = holder[pick_key(policy, state.key, row, expert) % before]
        new = serving_rank(policy, state.serves, state.served, state.home, state.key, row, expert)
        if old == new:
            continue
        left_rank = left_node = came_rank = came_node = 0
        if mode != DIRECT:
            left_rank, came_rank = _leaves(state.at_rank, row, old), _comes(state.at_rank, row, new)
            if mode == PER_NODE and node[old] != node[new]:
                left_node, came_node = _leaves(state.at_node, row, node[old]), _comes(state.at_node, row, node[new])
        moved(
            state.counts, node, state.landing, mode, home, old, new, ONE,
            (left_rank, left_node), (came_rank, came_node),
        )  # fmt: skip
    return HASHING * int(last - first)
