"""The search state counts what dispatch counts, and a move changes exactly what a recount would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.placement import Placement, dispatch
from moesim.placement.policies import frozen
from moesim.placement.token_aware import covered
from moesim.solve.rules import no_rules, received
from moesim.solve.search.anneal import anneal
from moesim.solve.search.cost import compute_s, cost, network_s, powers_s, prices
from moesim.solve.search.reroute import outlook_hashed, outlook_nearest, reroute, take_back
from moesim.solve.search.settle import make_state, recount, settle
from moesim.solve.search.shift import shift, take, working
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
    PICK_HASH,
    ROW_HASH,
    State,
    choose,
    evenly,
    refresh,
    spread,
)
from moesim.solve.solvers.moesim import mixed

NODE = np.repeat(np.arange(3, dtype=np.int32), 2)
RANKS = len(NODE)
SCALE = np.full((5, RANKS), 1e-6)
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


def build(
    seed: int, mode: int, policy: int, scenarios: int = 3, even: float = 0.0, poured: bool = False
) -> tuple[State, NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    routes, home, placed = layer(8, 4, rng)
    key = np.empty(len(home), np.int64)
    for rank in range(RANKS):
        mine = np.flatnonzero(home == rank)
        key[mine] = (np.arange(len(mine)) * 2654435769) & 0xFFFFFFFF
    demand = rng.random((scenarios, 8))
    state = make_state(routes, home, NODE, LANDING, placed, demand, mode, policy, key=key, even=even, poured=poured)
    return state, routes, home


def column_of(state: State, expert: int, columns: NDArray, parts: NDArray, index: int) -> np.int32:
    served = choose(
        expert, state.held, state.copies, state.node, state.policy[0], state.holder, state.scratch, columns, index
    )
    spread(served, state.holder, state.share, evenly(state.policy[0], state.even), columns, parts, index)
    return np.int32(served)  # as annealing keeps it, whose compiled moves serve here too


def outlook(state: State, expert: int, columns: NDArray, index: int, served: int, counts: NDArray, every: int) -> int:
    """Look ahead as annealing does, which does not look where traffic is free."""
    if state.mode[0] == NOTHING:
        return 0
    if state.policy[0] != NEAREST:
        return int(outlook_hashed(state, expert, columns, index, served, counts, every))
    looked = outlook_nearest(
        state.sets, state.on_rank.some, state.on_rank.more, state.on_node.some, state.on_node.more, state.itself,
        state.node, state.landing, state.mode[0], state.indptr, expert, state.serves, columns, index, state.left,
        state.came, counts,
    )  # fmt: skip
    return int(looked)


CASES = [(mode, policy) for mode in (DIRECT, PER_RANK, PER_NODE, NOTHING) for policy in (NEAREST, ROW_HASH, PICK_HASH)]


@pytest.mark.parametrize(("mode", "policy"), [*CASES, (PER_NODE, COVER)])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_incremental_equals_full_recount(mode: int, policy: int, seed: int) -> None:
    state, _, _ = build(seed, mode, policy, even=seed % 3 / 2)
    rng = np.random.default_rng(seed + 1)
    work = working(state.load, SCALE)
    for _ in range(20):
        rank, slot = int(rng.integers(RANKS)), int(rng.integers(4))
        old, new = int(state.slots[rank, slot]), int(rng.integers(8))
        if state.held[new, rank] or state.copies[old] < 2:
            continue
        state.slots[rank, slot] = new
        state.held[old, rank], state.held[new, rank] = False, True
        state.copies[old] -= 1
        state.copies[new] += 1
        pair = np.array([old, new], np.int32)
        columns, parts = np.zeros((2, RANKS), np.int32), np.zeros((2, RANKS))
        served = [column_of(state, expert, columns, parts, index) for index, expert in enumerate(pair)]
        load = state.load.copy()
        shift(work, state.load, state.part, state.demand, pair, 2, parts)
        np.testing.assert_array_equal(state.load, load)  # nothing has happened yet
        incremental = powers_s(work.total_then, RANKS, work.reference, 0, work.each)
        take(work, state.load)
        assert incremental == pytest.approx(compute_s(state.load, SCALE, 0), rel=1e-9)
        state.part[pair] = parts
        visits, before = state.visits.copy(), state.before.copy()
        state.log[0, 0] = 0
        if policy == COVER:
            refresh(state, old)
            refresh(state, new)
        for index, expert in enumerate(pair):
            reroute(state, expert, columns, index, served[index])
        np.testing.assert_array_equal(state.counts, recount(state))
        if policy == COVER:  # what a move changes can be taken back
            after = state.visits.copy()
            take_back(state)
            np.testing.assert_array_equal(state.visits, visits)
            state.visits[:] = after
            assert (before != state.before).any() or (visits == after).all()
    kept = {name: getattr(state, name).copy() for name in ("serves", "load", "counts", "at_rank", "at_node", "visits")}
    crowds = [[part.copy() for part in crowd] for crowd in (state.on_rank, state.on_node)]
    settle(state)
    for crowd, parts_kept in zip((state.on_rank, state.on_node), crowds, strict=True):
        for part, part_kept in zip(crowd, parts_kept, strict=True):
            np.testing.assert_array_equal(part, part_kept)
    np.testing.assert_allclose(state.load, kept.pop("load"), rtol=1e-9)
    if policy in (ROW_HASH, PICK_HASH):
        kept.pop("serves")  # its tail is left over from more copies
    for name, values in kept.items():
        np.testing.assert_array_equal(getattr(state, name), values)


@pytest.mark.parametrize(("mode", "policy"), CASES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_outlook_on_one_expert_is_what_rerouting_it_does(mode: int, policy: int, seed: int) -> None:
    state, _, _ = build(seed, mode, policy)
    rng = np.random.default_rng(seed + 1)
    for _ in range(10):
        expert, rank = np.int32(rng.integers(8)), int(rng.integers(RANKS))
        if state.held[expert, rank] and state.copies[expert] < 2:
            continue
        # counts know nothing of slots, so that a copy may come or go alone
        state.copies[expert] += -1 if state.held[expert, rank] else 1
        state.held[expert, rank] = not state.held[expert, rank]
        column, part = np.zeros((1, RANKS), np.int32), np.zeros((1, RANKS))
        served = column_of(state, expert, column, part, 0)
        counts = state.counts.copy()
        looked = outlook(state, expert, column, 0, served, counts, 1)
        assert (reroute(state, expert, column, 0, served) > 0) == (looked > 0)
        np.testing.assert_array_equal(state.counts, counts)


@pytest.mark.parametrize("policy", [ROW_HASH, PICK_HASH])
@pytest.mark.parametrize("mode", [DIRECT, PER_RANK, PER_NODE])
def test_one_row_in_several_stands_for_all_of_them(mode: int, policy: int) -> None:
    sampled, whole = [], []
    for seed in range(60):
        state, _, _ = build(seed, mode, policy)
        rng = np.random.default_rng(seed + 1)
        expert, rank = np.int32(rng.integers(8)), int(rng.integers(RANKS))
        if state.held[expert, rank]:
            continue
        state.copies[expert] += 1
        state.held[expert, rank] = True
        column, part = np.zeros((1, RANKS), np.int32), np.zeros((1, RANKS))
        served = column_of(state, expert, column, part, 0)
        for every, changes in ((4, sampled), (1, whole)):
            counts = state.counts.copy()
            outlook(state, expert, column, 0, served, counts, every)
            changes.append((counts - state.counts).ravel())
    few, all_of_them = np.concatenate(sampled), np.concatenate(whole)
    assert few @ all_of_them == pytest.approx(all_of_them @ all_of_them, rel=0.25)


@pytest.mark.parametrize(("policy", "name"), [(NEAREST, "nearest"), (ROW_HASH, "hash")])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_counts_equal_those_of_dispatch(policy: int, name: str, seed: int) -> None:
    states = {mode: build(seed, mode, policy) for mode in (DIRECT, PER_RANK, PER_NODE)}
    state, routes, home = states[PER_NODE]
    flow = dispatch(routes[:, None], home, Placement(state.slots[None].copy(), 8), NODE, LANDING, policy=name)
    remote = NODE[:, None] != NODE[None, :]
    inside = ~remote & ~np.eye(RANKS, dtype=bool)
    for mode, copies in ((DIRECT, flow.pairs[0]), (PER_RANK, flow.rank_copies[0])):
        counts = states[mode][0].counts
        np.testing.assert_array_equal(counts[NIC_OUT], (copies * remote).sum(axis=1))
        np.testing.assert_array_equal(counts[NIC_IN], (copies * remote).sum(axis=0))
        np.testing.assert_array_equal(counts[INSIDE_OUT], (copies * inside).sum(axis=1))
        np.testing.assert_array_equal(counts[INSIDE_IN], (copies * inside).sum(axis=0))
    away = flow.node_copies[0].copy()
    away[np.arange(RANKS), NODE] = 0
    landed = np.zeros(RANKS)
    np.add.at(landed, LANDING, away)
    np.testing.assert_array_equal(state.counts[NIC_OUT], away.sum(axis=1))
    np.testing.assert_array_equal(state.counts[NIC_IN], landed)
    np.testing.assert_array_equal(state.counts[INSIDE_OUT], flow.forward[0].sum(axis=1))
    np.testing.assert_array_equal(state.counts[INSIDE_IN], flow.forward[0].sum(axis=0))


@pytest.mark.parametrize(("policy", "name", "even"), [(NEAREST, "nearest", 0.0), (NEAREST, "uniform", 1.0)])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_load_is_that_of_dispatch_with_every_token_at_every_home(
    policy: int, name: str, even: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    routes, _, placed = layer(8, 4, rng)
    everywhere = np.repeat(routes, RANKS, axis=0)
    home = np.tile(np.arange(RANKS, dtype=np.int32), len(routes))
    demand = np.bincount(everywhere[everywhere >= 0], minlength=8)[None]
    state = make_state(routes, home[: len(routes)], NODE, LANDING, placed, demand, PER_NODE, policy, even=even)
    flow = dispatch(everywhere[:, None], home, Placement(placed[None], 8), NODE, LANDING, policy=name)
    np.testing.assert_allclose(state.load[:, 0], flow.slot_tokens[0].sum(axis=1))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_covered_rows_visit_as_few_nodes_as_token_aware_dispatch_without_a_cap(seed: int) -> None:
    state, routes, home = build(seed, PER_NODE, COVER)
    order = np.argsort(home, kind="stable")
    placement = Placement(state.slots[None].copy(), 8)
    indptr, rank, _ = placement.holders(0)
    group_ptr = np.searchsorted(home[order], np.arange(RANKS + 1))
    chosen = np.empty(routes.shape, np.int64)
    covered(routes[order], group_ptr, indptr, rank, frozen(NODE, np.int32), chosen)
    visited = [{NODE[rank[c]] for c in row if c >= 0} - {NODE[home[t]]} for row, t in zip(chosen, order, strict=True)]
    # greedy covers can differ where nodes tie, but for three picks each is a smallest one
    bits = [int(state.visits[t]).bit_count() for t in order]
    assert bits == [len(nodes) for nodes in visited]
    assert state.counts[NIC_OUT].sum() == sum(bits)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), policy=st.sampled_from([NEAREST, ROW_HASH, PICK_HASH, COVER]), poured=st.booleans())
def test_annealing_keeps_a_valid_placement_and_never_ends_worse(seed: int, policy: int, poured: bool) -> None:
    state, _, _ = build(seed, PER_NODE, policy, even=float(policy == COVER), poured=poured)
    floor_s = compute_s(state.load, np.full((5, RANKS), 1e-6), 0)
    worth = prices(np.full((5, RANKS), 1e-6), 2.0, floor_s, 5.0)
    before = cost(state, worth)
    outcome = anneal(state, worth, 20_000, hot=0.1, cold=0.001, seed=seed)
    Placement(state.slots[None], 8)
    np.testing.assert_array_equal(state.counts, recount(state))
    # poured from scratch the load is a little other than move by move
    assert outcome.best_s == pytest.approx(cost(state, worth), rel=0.05 if poured else 1e-6)
    assert cost(state, worth) <= before * (1.02 if poured else 1)
    assert not outcome.cut


def test_compute_beyond_the_floor_costs_more_and_few_scenarios_can_decide() -> None:
    state, _, _ = build(1, PER_NODE, NEAREST)
    scale = np.full((5, RANKS), 1e-6)
    compute, network = compute_s(state.load, scale, 0), network_s(state.counts, scale)
    assert cost(state, prices(scale, 2.0)) == pytest.approx(2 * compute + network)
    assert cost(state, prices(scale, 2.0, compute / 2, 6.0)) == pytest.approx(5 * compute + network)
    assert cost(state, prices(scale, 2.0, 2 * compute, 6.0)) == pytest.approx(2 * compute + network)
    assert compute_s(state.load, scale, 1) == pytest.approx(max(compute_s(s[:, None], scale, 0) for s in state.load.T))


def test_annealing_is_the_same_for_the_same_seed_and_stops_on_time() -> None:
    scale = prices(np.full((5, RANKS), 1e-6))
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


def test_the_best_candidate_is_chosen_layer_by_layer() -> None:
    slow, fast = Placement([[[0], [1]]] * 3, 2), Placement([[[1], [0]]] * 3, 2)
    worth = np.array([[1.0, 2.0, 2.0], [2.0, 1.0, 1.0]])
    np.testing.assert_array_equal(mixed([slow, fast], worth), [slow.experts[0], fast.experts[1], fast.experts[2]])


def test_a_received_copy_moves_on_where_the_move_budget_is_used_up() -> None:
    ran = np.array([[0, 1], [2, 3], [4, 5], [1, 2], [3, 4], [5, 1]], np.int32)
    was = np.zeros((6, RANKS), np.bool_)
    was[ran, np.arange(RANKS)[:, None]] = True
    rules = no_rules(NODE, 2, 6)._replace(was=was, most=np.array([1], np.int64))
    slots = ran.copy()
    slots[1, 1] = 0  # the one move: the fullest expert's second copy, beside expert 2
    demand = np.array([[12.0, 3, 4, 5.5, 4.5, 2]])
    routes, home = np.zeros((6, 1), np.int16), np.arange(RANKS, dtype=np.int32)
    state = make_state(routes, home, NODE, LANDING, slots, demand, NOTHING, ROW_HASH)
    assert state.load.max() == pytest.approx(8)
    # cold: giving it back first is far uphill, another move is not allowed
    anneal(state, prices(np.full((5, RANKS), 1e-6)), 10_000_000, hot=1e-6, cold=1e-6, seed=1, rules=rules)
    assert state.load.max() == pytest.approx(7)
    assert received(rules, state.slots) == 1
