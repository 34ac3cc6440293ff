"""Who uses which copy: built-in policies against their definitions, written out slowly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from moesim.placement import Placement, dispatch, nearest_table
from moesim.placement.policies import POLICIES, LayerBatch, frozen, physical_holders
from moesim.placement.shares import _alone, node_shares
from moesim.placement.token_aware import covered, load_cap, shed, token_aware

from .worlds import World, worlds


def grouped(world: World, layer: int) -> tuple[LayerBatch, np.ndarray]:
    order = np.argsort(world.home, kind="stable")
    ptr = np.concatenate([[0], np.cumsum(np.bincount(world.home, minlength=len(world.node)))])
    holders = physical_holders(world.placement, layer)
    node = frozen(world.node, np.int32)  # as dispatch hands it over
    batch = LayerBatch(layer, world.placement, node, *holders, world.routes[order, layer].copy(), ptr, 0)
    return batch, world.home[order]


@given(worlds())
@settings(max_examples=60, deadline=None)
def test_nearest_is_own_rank_then_own_node_then_any(world: World) -> None:
    table = nearest_table(world.placement, world.node)
    slots = world.placement.slots_per_rank
    for layer in range(world.placement.layers):
        indptr, rank, _ = world.placement.holders(layer)
        for expert in range(world.placement.num_experts):
            holders = set(rank[indptr[expert] : indptr[expert + 1]].tolist())
            dealt: dict[frozenset[int], list[int]] = {}
            for source in range(world.placement.ranks):
                slot = table[layer, source, expert]
                assert world.placement.physical_to_logical[layer, slot] == expert
                near = {r for r in holders if world.node[r] == world.node[source]}
                candidates = {source} & holders or near or holders
                assert slot // slots in candidates
                if source not in holders:
                    key = frozenset(candidates) | ({-1 - world.node[source]} if near else set())
                    dealt.setdefault(key, []).append(slot // slots)
            for candidates, used in dealt.items():
                counts = [used.count(r) for r in candidates if r >= 0]
                assert max(counts) - min(counts) <= 1  # fair


def test_left_over_sources_do_not_pile_up_on_the_first_copy() -> None:
    # eight experts, each with a copy on ranks 1 and 2; rank 0 alone must choose
    experts = np.array([[*range(8)], [*range(8)]])
    placement = Placement(np.stack([np.full(8, -1), *experts])[None], 8)
    used = nearest_table(placement, np.zeros(3, dtype=np.int32))[0, 0] // 8
    assert sorted(used.tolist()) == [1] * 4 + [2] * 4


@given(worlds())
@settings(max_examples=60, deadline=None)
def test_hash_is_the_knuth_hash_of_the_row_in_the_home_ranks_batch(world: World) -> None:
    batch, home = grouped(world, 0)
    slots = POLICIES.get("hash").picks(batch)
    rows: dict[int, int] = {}
    for token, rank in enumerate(home.tolist()):
        row = rows.get(rank, 0)
        rows[rank] = row + 1
        for pick, expert in enumerate(batch.routes[token].tolist()):
            if expert < 0:
                assert slots[token, pick] == -1
                continue
            copies = np.flatnonzero(world.placement.physical_to_logical[0] == expert)
            assert slots[token, pick] == copies[((row * 2654435769) & 0xFFFFFFFF) % len(copies)]


def test_hash_remainders_are_exact_for_many_rows_and_copy_counts() -> None:
    rows, ranks = 40_000, 67
    held = [np.arange(ranks) < copies for copies in (2, 3, 5, 7, 32, 33, 64, 67)]
    experts = np.where(np.stack(held, axis=1), np.arange(8), -1)[None]
    placement = Placement(experts, 8)
    routes = np.tile(np.arange(8, dtype=np.int16), (rows, 1))
    ptr = np.concatenate([[0], np.full(ranks, rows)])
    batch = LayerBatch(0, placement, np.zeros(ranks, np.int32), *physical_holders(placement, 0), routes, ptr, 0)
    used = POLICIES.get("hash").picks(batch) // placement.slots_per_rank
    hashed = (np.arange(rows) * 2654435769) & 0xFFFFFFFF
    for expert, copies in enumerate((2, 3, 5, 7, 32, 33, 64, 67)):
        assert np.array_equal(used[:, expert], hashed % copies)


def test_random_is_seeded_and_independent_of_other_layers() -> None:
    rng = np.random.default_rng(0)
    placement = Placement(np.tile(np.arange(4), (2, 8, 1)), 4)
    routes = rng.integers(0, 4, (500, 2, 2)).astype(np.int16)
    home = rng.integers(0, 8, 500)
    node, landing = np.zeros(8, dtype=int), np.arange(8)[:, None]
    one, same, other = (
        dispatch(routes, home, placement, node, landing, policy="random", seed=s).pairs for s in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[0], one[1])
    # eight copies, a thousand picks a layer: each gets an eighth, give or take five standard deviations
    assert (np.abs(one.sum(axis=1) - 125) < 5 * np.sqrt(1000 * 1 / 8 * 7 / 8)).all()


@given(worlds())
@settings(max_examples=60, deadline=None)
def test_token_aware_serves_every_pick_and_uncapped_visits_a_minimal_set_of_nodes(world: World) -> None:
    batch, home = grouped(world, 0)
    slots = token_aware(batch.routes, batch.group_ptr, batch.indptr, batch.rank, batch.slot, batch.node, cap=10**9)
    assert np.array_equal(slots >= 0, batch.routes >= 0)
    for token, row in enumerate(batch.routes.tolist()):
        held = [set(world.node[batch.rank[batch.indptr[e] : batch.indptr[e + 1]]].tolist()) for e in row if e >= 0]
        used = world.node[slots[token][slots[token] >= 0] // world.placement.slots_per_rank].tolist()
        own = world.node[home[token]]
        for where, could in zip(used, held, strict=True):
            assert where == own or own not in could  # what the own node holds stays there
        away = set(used) - {own}
        assert len(away) <= sum(own not in could for could in held)
        if away and set.intersection(*[could for could in held if own not in could]):
            assert len(away) == 1  # one node has all that the own node lacks


@given(worlds())
@settings(max_examples=60, deadline=None)
def test_shedding_lowers_the_fullest_rank_and_fills_nobody_above_the_cap(world: World) -> None:
    batch, _ = grouped(world, 0)
    ranks = len(world.node)
    chosen = np.empty(batch.routes.shape, np.int64)
    given_ = (batch.routes, batch.group_ptr, batch.indptr, batch.rank, batch.node)
    covered(*given_, chosen)
    before = np.bincount(batch.rank[chosen[chosen >= 0]], minlength=ranks)
    cap = load_cap(batch.routes, batch.indptr, batch.rank, ranks)
    assert cap * ranks >= before.sum()
    shed(*given_, cap, chosen)
    after = np.bincount(batch.rank[chosen[chosen >= 0]], minlength=ranks)
    assert after.sum() == before.sum()
    assert (after <= np.maximum(before, cap)).all()
    assert (after[before <= cap] >= before[before <= cap]).all()


def test_token_aware_keeps_the_cap_and_visits_fewer_nodes_than_nearest() -> None:
    rng = np.random.default_rng(5)
    node = np.repeat(np.arange(4), 2)
    # every expert on three or so of eight ranks; popular experts pull their holders above the mean
    placement = Placement(np.stack([rng.permutation(16)[:6] for _ in range(7)] + [np.arange(6)])[None], 16)
    popularity = 0.5 * rng.normal(size=16) + rng.gumbel(size=(4000, 16))
    routes = np.argsort(-popularity, axis=1)[:, None, :4].astype(np.int16)
    home = rng.integers(0, 8, 4000)
    landing = np.stack([np.where(node == n, np.arange(8), 2 * n + np.arange(8) % 2) for n in range(4)], axis=1)
    flows = {
        policy: dispatch(routes, home, placement, node, landing, policy=policy) for policy in ("nearest", "token-aware")
    }
    load = flows["token-aware"].slot_tokens[0].sum(axis=1)
    indptr, rank, _ = placement.holders(0)
    # whole parts of 8 home ranks round by less than one pick each
    assert load.max() <= load_cap(routes[:, 0], indptr, rank, 8) + 8
    assert flows["nearest"].slot_tokens[0].sum(axis=1).max() > 1.1 * load.max()
    assert flows["token-aware"].node_copies.sum() < flows["nearest"].node_copies.sum()


@given(worlds())
@settings(max_examples=30, deadline=None)
def test_shares_add_up_per_source_node_and_expert(world: World) -> None:
    batch, _ = grouped(world, 0)
    share, source = POLICIES.get("shares").shares(batch)
    assert share.shape == (world.node.max() + 1, len(batch.slot))
    assert source.tolist() == world.node.tolist()
    assert (share >= 0).all()
    np.testing.assert_allclose(np.add.reduceat(share, batch.indptr[:-1], axis=1), 1.0)


def test_shares_balance_where_traffic_is_free_and_stay_home_where_it_is_dear() -> None:
    # expert 0 on both nodes, the others once: 30 picks of expert 0 from node 0, 10 each of experts 1 and 2 from node 1
    placement = Placement([[[0, 1], [0, 2]]], 3)
    node, indptr = frozen([0, 1], np.int32), placement.holders(0)[0]
    routes = np.repeat([0, 1, 2], [30, 10, 10]).astype(np.int16)[:, None]
    given_ = (routes, np.array([0, 30, 50]), indptr, placement.holders(0)[1], node)
    share, _ = node_shares(*given_, traffic=0.0)
    assert share[0, :2].tolist() == pytest.approx([0.5, 0.5])
    share, _ = node_shares(*given_, traffic=100.0)
    assert share[0, :2].tolist() == pytest.approx([1.0, 0.0])


def test_shares_send_picks_of_a_token_to_one_node() -> None:
    # all tokens live on node 0 and pick experts 0 and 1; node 1 holds both, node 2 one of them beside expert 2
    placement = Placement([[[3, 4], [0, 1], [0, 2]]], 5)
    node, indptr = frozen(np.arange(3), np.int32), placement.holders(0)[0]
    routes = np.tile(np.array([[0, 1]], np.int16), (30, 1))
    given_ = (routes, np.array([0, 30, 30, 30]), indptr, placement.holders(0)[1], node)
    share, _ = node_shares(*given_, traffic=10.0)
    # to node 1 for both: going to node 2 for expert 0 would be a second copy of each token
    assert share[0, :2].tolist() == pytest.approx([1.0, 0.0])
    share, _ = node_shares(*given_, traffic=0.0)
    assert share[0, :2].tolist() == pytest.approx([0.0, 1.0])


@given(worlds())
@settings(max_examples=30, deadline=None)
def test_copies_that_merge_are_counted_as_the_flow_counts_them(world: World) -> None:
    batch, _ = grouped(world, 0)
    nodes, experts = int(world.node.max()) + 1, len(batch.indptr) - 1
    share, source = POLICIES.get("shares").shares(batch)
    served = np.zeros((nodes, experts, nodes))
    expert_of = np.repeat(np.arange(experts), np.diff(batch.indptr))
    np.add.at(served, (slice(None), expert_of, world.node[batch.rank]), share)
    home = np.repeat(source, np.diff(batch.group_ptr))
    alone, copies = _alone(batch.routes, home, served)
    flow = dispatch(world.routes, world.home, world.placement, world.node, world.landing, policy="shares")
    away = flow.node_copies[0].copy()
    away[np.arange(len(world.node)), world.node] = 0
    assert copies == pytest.approx(away.sum(), abs=1e-6)
    by_hand = np.zeros(served.shape)
    for token, own in zip(batch.routes, home, strict=True):
        picked = token[token >= 0]
        for index, expert in enumerate(picked):
            by_hand[own, expert] += np.prod(1 - served[own, np.delete(picked, index)], axis=0) * (
                np.arange(nodes) != own
            )
    seen = np.zeros((nodes, experts, 1))
    np.add.at(seen[:, :, 0], (np.repeat(home, batch.routes.shape[1])[batch.routes.ravel() >= 0],
                              batch.routes[batch.routes >= 0]), 1)  # fmt: skip
    np.testing.assert_allclose(alone * seen, by_hand, atol=1e-6)


def test_shedding_takes_picks_first_that_leave_a_node_for_another() -> None:
    # three nodes of one rank each; node 1 is over its cap and node 2 holds what it holds
    node, rank = frozen(np.arange(3), np.int32), np.array([0, 1, 2, 1, 2], np.int32)
    indptr = np.array([0, 1, 3, 5])  # expert 0 at home; experts 1 and 2 on nodes 1 and 2
    # tokens that pick both can visit node 1 for both; tokens that pick one of them go there for it alone
    routes = np.array([[1, 2]] * 10 + [[0, 1]] * 10, np.int16)
    chosen = np.array([[1, 3]] * 10 + [[0, 1]] * 10)
    assert shed(routes, np.array([0, 20, 20, 20]), indptr, rank, node, 20, chosen) == 10
    assert chosen[:10].tolist() == [[1, 3]] * 10
    assert chosen[10:].tolist() == [[0, 2]] * 10


def test_token_aware_moves_no_picks_for_nothing() -> None:
    # rank 0 is full of expert 0, which nobody else holds; ranks 1 and 2 could even out experts 1 and 2, over nodes
    placement = Placement([[[0, 3], [1, 2], [1, 2], [4, 5]]], 6)
    node, (indptr, rank, slot) = frozen([0, 0, 1, 1], np.int32), physical_holders(placement, 0)
    routes = np.array([[0, 1]] * 40 + [[0, 2]] * 20, np.int16)
    given_ = (routes, np.array([0, 60, 60, 60, 60]), indptr, rank)
    free = token_aware(*given_, slot, node, cap=10**9)
    assert (token_aware(*given_, slot, node, cap=30) == free).all()
