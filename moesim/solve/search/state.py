"""The state of the search: what one layer's placement does to every rank, kept up to date move by move.

A *row* is one token with its home rank, in one window. The state knows which rank serves every (home rank, expert)
and counts, per window and rank, the tokens computed and the copies that enter and leave over the network card and
inside the node. Giving an expert a new set of holders changes only the rows of the home ranks that are served
elsewhere from then on; these are found through an index (expert, home rank) -> rows. :func:`recount`
counts everything from scratch and must agree (a law in the tests), as must :func:`moesim.placement.dispatch`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.placement.choices import nearest_column
from moesim.placement.kernels import compiled

TOKENS, NIC_IN, NIC_OUT, INSIDE_IN, INSIDE_OUT = range(5)
"""Second axis of ``State.load``."""
COUNTERS: Final = 5

DIRECT, PER_RANK, PER_NODE, NOTHING = range(4)
"""How a token's copies are merged: not at all, per destination rank, per destination node; or traffic is constant."""

NEAREST, ROW_HASH, PICK_HASH = range(3)
"""Who serves a pick: nearest copy; copy by a key of the row; copy by a key of row and expert (for random policies)."""


class State(NamedTuple):
    """Arrays of one layer, changed in place by the moves.

    ``routes`` int16 [rows, picks]; ``home``, ``window`` int32 and ``key`` int64 [rows]; ``indptr`` int64 [experts *
    ranks + 1] and ``rows`` int32 index the rows of each (expert, home rank), by window; ``node`` int32 [ranks];
    ``landing`` int32 [ranks, nodes]; ``slots`` int32 [ranks, slots]; ``held`` bool [experts, ranks]; ``copies`` int32
    [experts]; ``serves`` int32 [ranks, experts], the rank that serves an expert to a home rank, or, under the hash
    policies, the rank of each copy, ``served`` int32 [experts] of them; ``load`` int64 [windows, counters, ranks];
    ``mode``, ``policy`` int64 [1], how copies are merged and who serves; ``scratch`` int64 [2, nodes].
    """

    routes: Any
    home: Any
    window: Any
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
    load: Any
    mode: Any
    policy: Any
    scratch: Any


@compiled
def _index(routes: Any, home: Any, order: Any, experts: int, ranks: int) -> Any:
    indptr = np.zeros(experts * ranks + 1, np.int64)
    rows, picks = routes.shape
    for row in range(rows):
        for pick in range(picks):
            if routes[row, pick] >= 0:
                indptr[routes[row, pick] * ranks + home[row] + 1] += 1
    for cell in range(experts * ranks):
        indptr[cell + 1] += indptr[cell]
    following = indptr[:-1].copy()
    found = np.empty(indptr[-1], np.int32)
    for row in order:
        for pick in range(picks):
            if routes[row, pick] >= 0:
                cell = routes[row, pick] * ranks + home[row]
                found[following[cell]] = row
                following[cell] += 1
    return indptr, found


@compiled
def _choices(state: State, expert: int, out: Any) -> int:
    """Write the column of ``serves`` that follows from ``held``; return the number of copies."""
    ranks = len(state.node)
    holder = np.empty(ranks, np.int32)
    total = 0
    for rank in range(ranks):
        if state.held[expert, rank]:
            holder[total] = rank
            total += 1
    if state.policy[0] == NEAREST:
        # the rank itself stands for its slot: the column then holds ranks
        nearest_column(expert, holder[:total], holder[:total], state.node, out, state.scratch)
    else:
        out[:total] = holder[:total]
    return total


@compiled
def refresh(state: State, expert: int) -> None:
    """Bring the table, but not the counts, up to date with ``state.held[expert]``."""
    column = np.zeros(len(state.node), np.int32)
    state.served[expert] = _choices(state, expert, column)
    state.serves[:, expert] = column


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
def _edge(load: Any, window: int, node: Any, home: int, target: int, amount: int) -> None:
    if home == target:
        return
    if node[home] == node[target]:
        load[window, INSIDE_OUT, home] += amount
        load[window, INSIDE_IN, target] += amount
    else:
        load[window, NIC_OUT, home] += amount
        load[window, NIC_IN, target] += amount


@compiled
def _hop(load: Any, window: int, landing: int, target: int, amount: int) -> None:
    # a copy that stays on its landing rank passes through the copy engine all the same
    load[window, INSIDE_OUT, landing] += amount
    load[window, INSIDE_IN, target] += amount


@compiled
def _moved(state: State, window: int, home: int, old: int, new: int, total: int, left: Any, came: Any) -> None:
    """Count picks that go from rank ``old`` to ``new``; ``left``, ``came``: rows that thereby leave or reach a place.

    Both are (ranks, nodes): rows with no other pick on that rank, and none on that node.
    """
    load, node, mode = state.load, state.node, state.mode[0]
    load[window, TOKENS, old] -= total
    load[window, TOKENS, new] += total
    if mode == DIRECT:
        _edge(load, window, node, home, old, -total)
        _edge(load, window, node, home, new, total)
    elif mode == PER_RANK:
        _edge(load, window, node, home, old, -left[0])
        _edge(load, window, node, home, new, came[0])
    elif mode == PER_NODE:
        landed, lands = state.landing[home, node[old]], state.landing[home, node[new]]
        _hop(load, window, landed, old, -left[0])
        _hop(load, window, lands, new, came[0])
        if node[old] != node[home]:
            load[window, NIC_OUT, home] -= left[1]
            load[window, NIC_IN, landed] -= left[1]
        if node[new] != node[home]:
            load[window, NIC_OUT, home] += came[1]
            load[window, NIC_IN, lands] += came[1]


@compiled
def reroute(state: State, expert: int) -> int:
    """Bring table and counts up to date with ``state.held[expert]``; return the rows looked at."""
    if state.policy[0] != NEAREST:
        return _reroute_hashed(state, expert)
    ranks, mode = len(state.node), state.mode[0]
    node, serves = state.node, state.serves
    fresh = np.empty(ranks, np.int32)
    state.served[expert] = _choices(state, expert, fresh)
    picks = state.routes.shape[1]
    merged = mode in (PER_RANK, PER_NODE)
    looked = 0
    for home in range(ranks):
        old, new = serves[home, expert], fresh[home]
        if old == new:
            continue
        serves[home, expert] = new
        old_node, new_node = node[old], node[new]
        table = serves[home]
        position = state.indptr[expert * ranks + home]
        last = state.indptr[expert * ranks + home + 1]
        looked += last - position
        while position < last:
            window = state.window[state.rows[position]]
            total = left_rank = left_node = came_rank = came_node = 0
            while position < last:
                row = state.rows[position]
                if state.window[row] != window:
                    break
                position += 1
                total += 1
                if not merged:
                    continue
                at_old = at_new = in_old = in_new = False
                for pick in range(picks):
                    other = state.routes[row, pick]
                    if other < 0 or other == expert:
                        continue
                    rank = table[other]
                    at_old |= rank == old
                    at_new |= rank == new
                    in_old |= node[rank] == old_node
                    in_new |= node[rank] == new_node
                left_rank += not at_old
                came_rank += not at_new
                left_node += not in_old
                came_node += not in_new
            _moved(state, window, home, old, new, total, (left_rank, left_node), (came_rank, came_node))
    return looked


@compiled
def _reroute_hashed(state: State, expert: int) -> int:
    ranks, picks = len(state.node), state.routes.shape[1]
    node = state.node
    before = state.served[expert]
    holder = state.serves[:before, expert].copy()
    refresh(state, expert)
    for position in range(state.indptr[expert * ranks], state.indptr[(expert + 1) * ranks]):
        row = state.rows[position]
        old = holder[_pick_key(state, row, expert) % before]
        new = serving_rank(state, row, expert)
        if old == new:
            continue
        at_old = at_new = in_old = in_new = False
        for pick in range(picks):
            other = state.routes[row, pick]
            if other < 0 or other == expert:
                continue
            rank = serving_rank(state, row, other)
            at_old |= rank == old
            at_new |= rank == new
            in_old |= node[rank] == node[old]
            in_new |= node[rank] == node[new]
        left, came = (int(not at_old), int(not in_old)), (int(not at_new), int(not in_new))
        _moved(state, state.window[row], state.home[row], old, new, 1, left, came)
    return int(state.indptr[(expert + 1) * ranks] - state.indptr[expert * ranks])


@compiled
def recount(state: State) -> Any:
    """Return ``load`` counted from scratch under the current table."""
    windows, counters, ranks = state.load.shape
    load = np.zeros((windows, counters, ranks), np.int64)
    rows, picks = state.routes.shape
    nodes = state.landing.shape[1]
    mode = state.mode[0]
    rank_seen = np.full(ranks, -1, np.int64)
    node_seen = np.full(nodes, -1, np.int64)
    for row in range(rows):
        home, window = state.home[row], state.window[row]
        own = state.node[home]
        for pick in range(picks):
            expert = state.routes[row, pick]
            if expert < 0:
                continue
            rank = serving_rank(state, row, expert)
            load[window, TOKENS, rank] += 1
            if mode == NOTHING:
                continue
            if mode == DIRECT:
                _edge(load, window, state.node, home, rank, 1)
                continue
            if rank_seen[rank] != row:
                rank_seen[rank] = row
                if mode == PER_RANK:
                    _edge(load, window, state.node, home, rank, 1)
                else:
                    _hop(load, window, state.landing[home, state.node[rank]], rank, 1)
            there = state.node[rank]
            if mode == PER_NODE and there != own and node_seen[there] != row:
                node_seen[there] = row
                load[window, NIC_OUT, home] += 1
                load[window, NIC_IN, state.landing[home, there]] += 1
    return load


def make_state(
    routes: NDArray[np.int16],
    home: NDArray[np.int32],
    window: NDArray[np.int32],
    node: NDArray[np.int32],
    landing: NDArray[np.int32],
    slots: NDArray[np.int32],
    experts: int,
    windows: int,
    mode: int,
    policy: int = NEAREST,
    key: NDArray[np.int64] | None = None,
) -> State:
    """Return the state of a layer under the placement ``slots`` [ranks, slots]; see :class:`State` for shapes."""
    ranks = len(node)
    order = np.argsort(window, kind="stable").astype(np.int64)
    indptr, rows = _index(routes, home, order, experts, ranks)
    state = State(
        routes=np.ascontiguousarray(routes, dtype=np.int16),
        home=np.array(home, dtype=np.int32),
        window=np.array(window, dtype=np.int32),
        key=np.arange(len(home)) if key is None else np.array(key, dtype=np.int64),
        indptr=indptr,
        rows=rows,
        node=np.array(node, dtype=np.int32),
        landing=np.array(landing, dtype=np.int32),
        slots=np.array(slots, dtype=np.int32),
        held=np.zeros((experts, ranks), np.bool_),
        copies=np.zeros(experts, np.int32),
        serves=np.zeros((ranks, experts), np.int32),
        served=np.zeros(experts, np.int32),
        load=np.zeros((windows, COUNTERS, ranks), np.int64),
        mode=np.array([mode], np.int64),
        policy=np.array([policy], np.int64),
        scratch=np.zeros((2, int(np.max(node)) + 1), np.int64),
    )
    settle(state)
    return state


@compiled
def settle(state: State) -> None:
    """Derive everything from ``state.slots``."""
    experts, ranks = state.held.shape
    state.held[:] = False
    state.copies[:] = 0
    for rank in range(ranks):
        for expert in state.slots[rank]:
            if expert >= 0:
                state.held[expert, rank] = True
                state.copies[expert] += 1
    for expert in range(experts):
        refresh(state, expert)
    state.load[:] = recount(state)
