"""The search state counts what dispatch counts, and a move changes exactly what a recount would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.placement import Placement, dispatch
from moesim.solve.objective import Score
from moesim.solve.search.anneal import anneal, cost
from moesim.solve.search.state import (
    DIRECT,
    INSIDE_IN,
    INSIDE_OUT,
    NEAREST,
    NIC_IN,
    NIC_OUT,
    NOTHING,
    PER_NODE,
    PER_RANK,
    PICK_HASH,
    ROW_HASH,
    TOKENS,
    State,
    make_state,
    recount,
    reroute,
    settle,
)
from moesim.solve.solvers.moesim import mixed

NODE = np.repeat(np.arange(3, dtype=np.int32), 2)
RANKS = len(NODE)
ALONE = (np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1, np.int64))
LANDING = np.array([[2 * n + r % 2 for n in range(3)] for r in range(RANKS)], np.int32)


def layer(experts: int, slots: int, rng: np.random.Generator, rows: int = 60, picks: int = 3) -> tuple[NDArray, ...]:
    routes = np.array([rng.permutation(experts)[:picks] for _ in range(rows)], np.int16)
    routes[rng.random(routes.shape) < 0.1] = -1
    home = rng.integers(RANKS, size=rows).astype(np.int32)
    placed = np.stack([rng.permutation(experts)[:slots] for _ in range(RANKS)]).astype(np.int32)
    for expert in range(experts):  # everyone somewhere
        if not (placed == expert).any():
            placed[expert % RANKS, expert // RANKS % slots] = expert
    while len(missing := sorted(set(range(experts)) - set(placed.ravel().tolist()))) or any(
        len(set(rank.tolist())) < slots for rank in placed
    ):
        placed = np.stack([rng.permutation(experts)[:slots] for _ in range(RANKS)]).astype(np.int32)
        for expert in missing:
            rank = int(rng.integers(RANKS))
            if expert not in placed[rank]:
                placed[rank, int(rng.integers(slots))] = expert
    return routes, home, placed


def build(seed: int, mode: int, policy: int, windows: int = 3) -> tuple[State, NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    routes, home, placed = layer(8, 4, rng)
    window = rng.integers(windows, size=len(routes)).astype(np.int32)
    key = np.empty(len(home), np.int64)
    for rank in range(RANKS):
        mine = np.flatnonzero(home == rank)
        key[mine] = (np.arange(len(mine)) * 2654435769) & 0xFFFFFFFF
    state = make_state(routes, home, window, NODE, LANDING, placed, 8, windows, mode, policy, key)
    return state, routes, home


@pytest.mark.parametrize("mode", [DIRECT, PER_RANK, PER_NODE, NOTHING])
@pytest.mark.parametrize("policy", [NEAREST, ROW_HASH, PICK_HASH])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_incremental_equals_full_recount(mode: int, policy: int, seed: int) -> None:
    state, _, _ = build(seed, mode, policy)
    rng = np.random.default_rng(seed + 1)
    for _ in range(20):
        rank, slot = int(rng.integers(RANKS)), int(rng.integers(4))
        old, new = int(state.slots[rank, slot]), int(rng.integers(8))
        if state.held[new, rank] or state.copies[old] < 2:
            continue
        state.slots[rank, slot] = new
        state.held[old, rank], state.held[new, rank] = False, True
        state.copies[old] -= 1
        state.copies[new] += 1
        reroute(state, old)
        reroute(state, new)
        np.testing.assert_array_equal(state.load, recount(state))
    tables, load = state.serves.copy(), state.load.copy()
    settle(state)
    np.testing.assert_array_equal(state.load, load)
    if policy == NEAREST:
        np.testing.assert_array_equal(state.serves, tables)


@pytest.mark.parametrize(("policy", "name"), [(NEAREST, "nearest"), (ROW_HASH, "hash")])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_counts_equal_those_of_dispatch(policy: int, name: str, seed: int) -> None:
    states = {mode: build(seed, mode, policy, windows=1) for mode in (DIRECT, PER_RANK, PER_NODE)}
    state, routes, home = states[PER_NODE]
    flow = dispatch(routes[:, None], home, Placement(state.slots[None].copy(), 8), NODE, LANDING, policy=name)
    remote = NODE[:, None] != NODE[None, :]
    inside = ~remote & ~np.eye(RANKS, dtype=bool)
    for mode, copies in ((DIRECT, flow.pairs[0]), (PER_RANK, flow.rank_copies[0])):
        load = states[mode][0].load[0]
        np.testing.assert_array_equal(load[NIC_OUT], (copies * remote).sum(axis=1))
        np.testing.assert_array_equal(load[NIC_IN], (copies * remote).sum(axis=0))
        np.testing.assert_array_equal(load[INSIDE_OUT], (copies * inside).sum(axis=1))
        np.testing.assert_array_equal(load[INSIDE_IN], (copies * inside).sum(axis=0))
    load = state.load[0]
    away = flow.node_copies[0].copy()
    away[np.arange(RANKS), NODE] = 0
    landed = np.zeros(RANKS)
    np.add.at(landed, LANDING, away)
    np.testing.assert_array_equal(load[TOKENS], flow.slot_tokens[0].sum(axis=1))
    np.testing.assert_array_equal(load[NIC_OUT], away.sum(axis=1))
    np.testing.assert_array_equal(load[NIC_IN], landed)
    np.testing.assert_array_equal(load[INSIDE_OUT], flow.forward[0].sum(axis=1))
    np.testing.assert_array_equal(load[INSIDE_IN], flow.forward[0].sum(axis=0))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), policy=st.sampled_from([NEAREST, ROW_HASH, PICK_HASH]))
def test_annealing_keeps_a_valid_placement_and_never_ends_worse(seed: int, policy: int) -> None:
    state, _, _ = build(seed, PER_NODE, policy)
    scale = np.full((5, RANKS), 1e-6)
    before = cost(state.load, scale)
    outcome = anneal(state, scale, 20_000, hot=0.1, cold=0.001, seed=seed)
    Placement(state.slots[None], 8)
    np.testing.assert_array_equal(state.load, recount(state))
    assert outcome.best_s == pytest.approx(cost(state.load, scale))
    assert cost(state.load, scale) <= before
    assert not outcome.cut


def test_annealing_is_the_same_for_the_same_seed_and_stops_on_time() -> None:
    scale = np.full((5, RANKS), 1e-6)
    found = []
    for seed in (3, 3, 4):
        state, _, _ = build(0, PER_NODE, NEAREST)
        anneal(state, scale, 5_000, hot=0.1, cold=0.001, seed=seed)
        found.append(state.slots.tolist())
    assert found[0] == found[1] != found[2]
    state, _, _ = build(0, PER_NODE, NEAREST)
    before = state.slots.tolist()
    assert anneal(state, scale, 5_000, hot=0.1, cold=0.001, seed=3, stop_at=0.0).cut
    assert state.slots.tolist() == before


def test_the_fastest_placement_that_is_balanced_enough_is_chosen_layer_by_layer() -> None:
    slow, fast = Placement([[[0], [1]]] * 3, 2), Placement([[[1], [0]]] * 3, 2)
    scores = [
        Score(np.array([6.0]), np.array([[2.0, 2.0, 2.0]]), np.array([[0.9, 0.9, 0.6]]), *ALONE),
        Score(np.array([3.0]), np.array([[1.0, 1.0, 1.0]]), np.array([[0.8, 0.5, 0.5]]), *ALONE),
    ]
    chosen = mixed([slow, fast], scores, least=np.array([0.7, 0.7, 0.7]))
    # fast enough and balanced; not balanced; nothing is balanced enough, so the most balanced one
    np.testing.assert_array_equal(chosen, [fast.experts[0], slow.experts[1], slow.experts[2]])
    np.testing.assert_array_equal(mixed([slow, fast], scores), fast.experts)
