"""The state of the search from scratch: building it, and counting everything anew."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.base.compiled import ONE, compiled, overwrite
from moesim.solve.search.bits import fill, make_crowd, make_sets
from moesim.solve.search.cover import count_cover, cover_row
from moesim.solve.search.reroute import edge, hop
from moesim.solve.search.sharing import share_load
from moesim.solve.search.state import (
    COUNTERS,
    COVER,
    DIRECT,
    NEAREST,
    NIC_IN,
    NIC_OUT,
    NOTHING,
    PER_NODE,
    PER_RANK,
    State,
    refresh,
    serving_rank,
)


@compiled
def _index(routes: Any, home: Any, experts: int, ranks: int) -> Any:
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
    for row in range(rows):
        for pick in range(picks):
            if routes[row, pick] >= 0:
                cell = routes[row, pick] * ranks + home[row]
                found[following[cell]] = row
                following[cell] += 1
    return indptr, found


@compiled
def recount(state: State) -> Any:
    """Return ``counts`` counted from scratch under the current table."""
    counts = np.zeros_like(state.counts)
    rows, picks = state.routes.shape
    ranks, nodes = state.landing.shape
    mode = state.mode[0]
    rank_seen = np.full(ranks, -1, np.int64)
    node_seen = np.full(nodes, -1, np.int64)
    if mode == NOTHING:
        return counts
    for row in range(rows):
        home: Any = np.int64(state.home[row])
        own = state.node[home]
        if state.policy[0] == COVER:
            visited = cover_row(state.routes[row], state.mask, own, row, state.landing.shape[1])
            count_cover(counts, state.landing[home], home, visited, ONE)
            continue
        for pick in range(picks):
            expert: Any = np.int64(state.routes[row, pick])
            if expert < 0:
                continue
            rank = serving_rank(state.policy[0], state.serves, state.served, state.home, state.key, row, expert)
            if mode == DIRECT:
                edge(counts, state.node, home, rank, ONE)
                continue
            if rank_seen[rank] != row:
                rank_seen[rank] = row
                if mode == PER_RANK:
                    edge(counts, state.node, home, rank, ONE)
                else:
                    hop(counts, state.landing[home, state.node[rank]], rank, ONE)
            there = state.node[rank]
            if mode == PER_NODE and there != own and node_seen[there] != row:
                node_seen[there] = row
                counts[NIC_OUT, home] += 1
                counts[NIC_IN, state.landing[home, there]] += 1
    return counts


def make_state(
    routes: NDArray[np.int16],
    home: NDArray[np.int32],
    node: NDArray[np.int32],
    landing: NDArray[np.int32],
    slots: NDArray[np.int32],
    demand: ArrayLike,
    mode: int,
    policy: int = NEAREST,
    *,
    share: ArrayLike | None = None,
    unit: ArrayLike | None = None,
    key: NDArray[np.int64] | None = None,
    even: float = 0.0,
    poured: bool = False,
) -> State:
    """Return the state of a layer under the placement ``slots`` [ranks, slots]; see :class:`State` for shapes."""
    ranks = len(node)
    wanted = np.array(demand, dtype=np.float64)
    wanted = np.ascontiguousarray(wanted.T)  # scenarios side by side
    experts, scenarios = wanted.shape
    routes = np.ascontiguousarray(routes, dtype=np.int16)
    indptr, rows = _index(routes, home, experts, ranks)
    covered = policy == COVER
    merged = not covered and mode in (PER_RANK, PER_NODE)
    hashed = merged and policy != NEAREST
    as_bits = merged and not hashed
    nodes = int(np.max(node)) + 1
    sets = make_sets(routes[: len(home) * as_bits], home[: len(home) * as_bits], experts, ranks)
    state = State(
        routes=routes,
        home=np.array(home, dtype=np.int32),
        key=np.arange(len(home)) if key is None else np.array(key, dtype=np.int64),
        indptr=indptr,
        rows=rows,
        node=np.array(node, dtype=np.int32),
        landing=np.array(landing, dtype=np.int32),
        slots=np.array(slots, dtype=np.int32),
        held=np.zeros((experts, ranks), np.bool_),
        copies=np.zeros(experts, np.int32),
        serves=np.zeros((experts, ranks), np.int32),
        served=np.zeros(experts, np.int32),
        part=np.zeros((experts, ranks)),
        counts=np.zeros((COUNTERS, ranks), np.int64),
        demand=wanted,
        share=np.full(ranks, 1 / ranks) if share is None else np.array(share, dtype=np.float64),
        unit=np.ones(ranks) if unit is None else np.array(unit, dtype=np.float64),
        load=np.zeros((ranks, scenarios)),
        even=np.array([even]),
        poured=np.array([poured]),
        mode=np.array([mode], np.int64),
        policy=np.array([policy], np.int64),
        scratch=np.zeros((2, nodes), np.int64),
        holder=np.zeros(ranks, np.int32),
        itself=np.arange(ranks, dtype=np.int32),
        left=np.zeros((2, ranks), np.int64),
        came=np.zeros((2, ranks), np.int64),
        visits=np.zeros(len(home) * covered, np.uint64),
        mask=np.zeros(experts, np.uint64),
        before=np.zeros(experts, np.uint64),
        log=np.zeros((2 * len(rows) * covered + 1, 2), np.uint64),
        at_rank=np.zeros((ranks, len(home) * hashed), np.uint8),
        at_node=np.zeros((nodes, len(home) * (hashed and mode == PER_NODE)), np.uint8),
        sets=sets,
        # of a move of four experts two can come before others go
        on_rank=make_crowd(ranks, sets, min(routes.shape[1], slots.shape[1] + 2)),
        on_node=make_crowd(nodes * (mode == PER_NODE), sets, routes.shape[1]),
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
    state.load[:] = 0
    for expert in range(experts):
        refresh(state, expert)
        for rank in range(ranks):
            for scenario in range(state.load.shape[1]):
                state.load[rank, scenario] += state.part[expert, rank] * state.demand[expert, scenario]
    if state.poured[0]:
        share_load(state)
    for row in range(len(state.visits)):
        own = state.node[state.home[row]]
        state.visits[row] = cover_row(state.routes[row], state.mask, own, row, state.landing.shape[1])
    for expert in range(experts):
        state.before[expert] = state.mask[expert]
    state.log[0, 0] = 0
    state.at_rank[:] = 0
    state.at_node[:] = 0
    for row in range(state.at_rank.shape[1]):
        for picked in state.routes[row]:
            expert = int(np.int64(picked))
            if expert >= 0:
                rank = serving_rank(state.policy[0], state.serves, state.served, state.home, state.key, row, expert)
                state.at_rank[rank, row] += np.uint8(1)
                if state.at_node.shape[1]:
                    state.at_node[state.node[rank], row] += np.uint8(1)
    if state.sets.picked.shape[1]:
        fill(state.sets, state.on_rank, state.itself, state.serves)
        if len(state.on_node.some):
            fill(state.sets, state.on_node, state.node, state.serves)
    overwrite(state.counts, recount(state))
