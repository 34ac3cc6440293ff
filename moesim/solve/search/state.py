"""The state of the search: what one layer's placement does to every rank, kept up to date move by move.

Two things are kept. *Load*: the picks that each rank must compute, per scenario, expected over homes - which rank a
request lives on is the scheduler's choice, and a placement fitted to one deal of homes would not hold under the next.
*Counts*: copies that enter and leave each rank over the network card and inside the node, over a sample of *rows*,
tokens with a home rank. Giving an expert a new set of holders changes only the rows of the home ranks that are
served elsewhere from then on; these are found through an index (expert, home rank) -> rows. What
:mod:`moesim.solve.search.settle` counts from scratch must agree (a law in the tests), as must
:func:`moesim.placement.dispatch`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from moesim.placement.choices import nearest_column
from moesim.placement.kernels import compiled
from moesim.solve.search.cover import count_cover, cover_row, holding_nodes

TOKENS, NIC_IN, NIC_OUT, INSIDE_IN, INSIDE_OUT = range(5)
"""First axis of ``State.counts`` (whose ``TOKENS`` stay 0: ``State.load`` has them) and of a scale."""
COUNTERS: Final = 5

DIRECT, PER_RANK, PER_NODE, NOTHING = range(4)
"""How a token's copies are merged: not at all, per destination rank, per destination node; or traffic is constant."""

NEAREST, ROW_HASH, PICK_HASH, COVER = range(4)
"""Who serves a pick: nearest copy; copy by a key of the row; copy by a key of row and expert (for random policies);
the fewest nodes that hold all picks of the row."""


class State(NamedTuple):
    """Arrays of one layer, changed in place by the moves.

    Traffic: ``routes`` int16 [rows, picks]; ``home`` int32 and ``key`` int64 [rows]; ``indptr`` int64 [experts * ranks
    + 1] and ``rows`` int32 index the rows of each (expert, home rank); ``demand`` float64 [experts, scenarios];
    ``share`` float64 [ranks], the part of all tokens that live there.

    Ranks: ``node`` int32 [ranks]; ``landing`` int32 [ranks, nodes].

    Placement: ``slots`` int32 [ranks, slots]; ``held`` bool [experts, ranks]; ``copies`` int32 [experts]; ``serves``
    int32 [ranks, experts], the rank that serves an expert to a home rank, or, under hashes, the rank of each copy;
    ``served`` int32 [experts] copies.

    What it does: ``counts`` int64 [counters, ranks]; ``load`` float64 [ranks, scenarios]; ``at_rank`` uint8 [rows,
    ranks] and ``at_node`` uint8 [rows, nodes], picks of a row that are computed there, where copies merge.

    Under ``COVER``: ``mask`` uint64 [experts], the nodes that hold an expert; ``before``, those that held it when its
    rows were last looked at; ``visits`` uint64 [rows]; ``log`` uint64 [2 * rows + 1, 2], rows that a move has changed
    and their visits before.

    Settings: ``even`` float64 [1], the part of an expert's work that its copies share evenly whoever is nearest;
    ``mode``, ``policy`` int64 [1], how copies are merged and who serves; ``scratch`` int64 [2, nodes].
    """

    routes: Any
    home: Any
    key: Any
    indptr: Any
    rows: Any
    node: Any
    landing: Any
    slots: Any
    held: Any
    copies: Any
    serves: Any
    served: Any
    counts: Any
    demand: Any
    share: Any
    load: Any
    even: Any
    mode: Any
    policy: Any
    scratch: Any
    visits: Any
    mask: Any
    before: Any
    log: Any
    at_rank: Any
    at_node: Any


@compiled
def choose(state: State, expert: int, out: Any) -> int:
    """Write the column of ``serves`` that follows from ``held``; return the number of copies."""
    ranks = len(state.node)
    holder = np.empty(ranks, np.int32)
    total = 0
    for rank in range(ranks):
        if state.held[expert, rank]:
            holder[total] = rank
            total += 1
    if state.policy[0] in (NEAREST, COVER):
        # the rank itself stands for its slot: the column then holds ranks
        nearest_column(expert, holder[:total], holder[:total], state.node, out, state.scratch)
    else:
        out[:total] = holder[:total]
    return total


@compiled
def refresh(state: State, expert: int) -> None:
    """Bring the table, but not the counts, up to date with ``state.held[expert]``."""
    column = np.zeros(len(state.node), np.int32)
    state.served[expert] = choose(state, expert, column)
    state.serves[:, expert] = column
    state.mask[expert] = holding_nodes(state.held[expert], state.node)


@compiled
def _pick_key(state: State, row: int, expert: int) -> int:
    if state.policy[0] == ROW_HASH:
        return int(state.key[row])
    # Fibonacci hashing: the high bits of the product are well mixed
    return int(((state.key[row] + expert) * 2654435769 & 0xFFFFFFFF) >> 8)


@compiled
def serving_rank(state: State, row: int, expert: int) -> int:
    """Return the rank that computes a pick of a row."""
    if state.policy[0] == NEAREST:
        return int(state.serves[state.home[row], expert])
    return int(state.serves[_pick_key(state, row, expert) % state.served[expert], expert])


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
def _moved(state: State, home: int, old: int, new: int, total: int, left: Any, came: Any) -> None:
    """Count picks that go from rank ``old`` to ``new``; ``left``, ``came``: rows that thereby leave or reach a place.

    Both are (ranks, nodes): rows with no other pick on that rank, and none on that node.
    """
    counts, node, mode = state.counts, state.node, state.mode[0]
    if mode == DIRECT:
        edge(counts, node, home, old, -total)
        edge(counts, node, home, new, total)
    elif mode == PER_RANK:
        edge(counts, node, home, old, -left[0])
        edge(counts, node, home, new, came[0])
    elif mode == PER_NODE:
        landed, lands = state.landing[home, node[old]], state.landing[home, node[new]]
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
def share_out(state: State, expert: int, serves: Any, served: int, sign: float) -> None:
    """Add the load of an expert, times ``sign``, to the ranks that serve it: column and count of :func:`choose`."""
    ranks, scenarios = state.load.shape
    demand = state.demand[expert]
    if served == 1:
        for scenario in range(scenarios):
            state.load[serves[0], scenario] += sign * demand[scenario]
        return
    even = state.even[0] if state.policy[0] in (NEAREST, COVER) else 1.0
    if even > 0:
        part = sign * even / served
        for rank in range(ranks):
            if state.held[expert, rank]:
                for scenario in range(scenarios):
                    state.load[rank, scenario] += part * demand[scenario]
    if even < 1:
        for home in range(ranks):
            part = sign * (1 - even) * state.share[home]
            for scenario in range(scenarios):
                state.load[serves[home], scenario] += part * demand[scenario]


@compiled
def reroute(state: State, expert: int) -> int:
    """Bring table and counts up to date with ``state.held[expert]``; return the rows looked at."""
    if state.policy[0] == COVER:
        refresh(state, expert)
        looked = _reroute_cover(state, expert, state.before[expert])
        state.before[expert] = state.mask[expert]
        return looked
    if state.policy[0] != NEAREST:
        return _reroute_hashed(state, expert)
    ranks, mode = len(state.node), state.mode[0]
    node, serves = state.node, state.serves
    fresh = np.empty(ranks, np.int32)
    state.served[expert] = choose(state, expert, fresh)
    if mode == NOTHING:
        serves[:, expert] = fresh
        return 0
    merged = mode in (PER_RANK, PER_NODE)
    looked = 0
    for home in range(ranks):
        old, new = serves[home, expert], fresh[home]
        if old == new:
            continue
        serves[home, expert] = new
        first, last = state.indptr[expert * ranks + home], state.indptr[expert * ranks + home + 1]
        looked += last - first
        left_rank = left_node = came_rank = came_node = 0
        if merged:
            for position in range(first, last):
                row = state.rows[position]
                left_rank += _leaves(state.at_rank, row, old)
                came_rank += _comes(state.at_rank, row, new)
            if mode == PER_NODE and node[old] != node[new]:
                for position in range(first, last):
                    row = state.rows[position]
                    left_node += _leaves(state.at_node, row, node[old])
                    came_node += _comes(state.at_node, row, node[new])
        _moved(state, home, old, new, last - first, (left_rank, left_node), (came_rank, came_node))
    return looked


@compiled
def _leaves(at: Any, row: int, place: int) -> int:
    """Take one pick of a row off a place; return 1 if it was the last one there."""
    at[row, place] -= np.uint8(1)
    return int(at[row, place] == 0)


@compiled
def _comes(at: Any, row: int, place: int) -> int:
    """Put one pick of a row on a place; return 1 if it is the first one there."""
    at[row, place] += np.uint8(1)
    return int(at[row, place] == 1)


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
            row = state.rows[position]
            visited = state.visits[row]
            now = cover_row(state.routes[row], state.mask, own, row, nodes)
            if now != visited:
                filled += 1
                state.log[filled, 0], state.log[filled, 1] = row, visited
                state.visits[row] = now
                count_cover(state.counts, state.landing[home], home, visited & ~now, -1)
                count_cover(state.counts, state.landing[home], home, now & ~visited, 1)
    state.log[0, 0] = filled
    return 2 * looked


@compiled
def take_back(state: State) -> None:
    """Restore the visits that have changed since ``log`` was cleared."""
    filled = int(state.log[0, 0])
    for position in range(filled, 0, -1):
        state.visits[state.log[position, 0]] = state.log[position, 1]
    state.log[0, 0] = 0


@compiled
def _reroute_hashed(state: State, expert: int) -> int:
    ranks, mode, node = len(state.node), state.mode[0], state.node
    before = state.served[expert]
    holder = state.serves[:before, expert].copy()
    refresh(state, expert)
    first, last = state.indptr[expert * ranks], state.indptr[(expert + 1) * ranks]
    if mode == NOTHING:
        return 0
    for position in range(first, last):
        row = state.rows[position]
        old = holder[_pick_key(state, row, expert) % before]
        new = serving_rank(state, row, expert)
        if old == new:
            continue
        left_rank = left_node = came_rank = came_node = 0
        if mode != DIRECT:
            left_rank, came_rank = _leaves(state.at_rank, row, old), _comes(state.at_rank, row, new)
            if mode == PER_NODE and node[old] != node[new]:
                left_node, came_node = _leaves(state.at_node, row, node[old]), _comes(state.at_node, row, node[new])
        _moved(state, state.home[row], old, new, 1, (left_rank, left_node), (came_rank, came_node))
    return int(last - first)
