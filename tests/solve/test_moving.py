"""Moves: like ranks renumbered optimally, seconds from the links, stay where a move does not pay off."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import Infeasible, InputError
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.placement import EMPTY, Placement
from moesim.placement.rounds import schedule
from moesim.solve import Constraints, solve
from moesim.solve.limits import holders
from moesim.solve.memory import RESERVED_MEMORY, other_weights
from moesim.solve.moving import STORAGE_BANDWIDTH, break_even_s, price, staging_room
from moesim.solve.objective import score
from moesim.solve.relabel import nodes_alike, rank_kinds, relabel
from moesim.solve.survival import costs_on, restored, survival, survivors, without_ranks
from moesim.solve.terms import steps_of_move
from moesim.trace import make_batches, synthetic
from tests.placement.worlds import random_placement
from tests.solve.conftest import tiny_cluster, tiny_spec, tiny_trace

CLUSTER = tiny_cluster(2, 2)
FAST: dict[str, Any] = {"effort": 2e6, "rows": 400, "tokens_per_rank": 64, "jobs": 1}


def received(experts: np.ndarray, was: np.ndarray) -> int:
    return int((holders(experts, was.shape[1]) & ~was).sum())


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_no_renumbering_of_like_ranks_moves_fewer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    running, planned = (random_placement(rng, 1, 4, 3, 8) for _ in range(2))
    found = relabel(planned.experts, running.has, CLUSTER)
    # ranks within nodes, and the two nodes themselves
    orders = [a + b for a, b in itertools.product([(0, 1), (1, 0)], [(2, 3), (3, 2)])]
    orders += [order[2:] + order[:2] for order in orders]
    least = min(received(planned.experts[:, list(order)], running.has) for order in orders)
    assert received(found, running.has) == least
    rows = {tuple(sorted(row.tolist())) for row in planned.experts[0]}
    assert {tuple(sorted(row.tolist())) for row in found[0]} == rows


def test_unlike_ranks_are_not_exchanged() -> None:
    running = np.array([[[0], [1], [2], [3]]])
    turned = np.array([[[1], [0], [3], [2]]])
    was = holders(running, 4)
    assert received(relabel(turned, was, CLUSTER), was) == 0
    slow = dataclasses.replace(CLUSTER, speed=np.array([1.0, 0.5, 1.0, 1.0]))
    assert len(set(rank_kinds(slow).tolist())) == 2
    assert received(relabel(turned, was, slow), was) == 2
    # nor ranks that may fill other numbers of slots, nor nodes that are not alike
    assert received(relabel(turned, was, CLUSTER, np.array([[1, 2, 1, 1]])), was) == 2
    tree = Cluster.preset("h100-fat-tree-oversub")
    assert not nodes_alike(tree)
    assert nodes_alike(Cluster.preset("h100-4x8-rail"))


def test_a_round_takes_its_busiest_link() -> None:
    running = [[[0], [1], [2], [3]]]
    size = 1e9
    inside = price(schedule(running, Placement([[[1], [0], [2], [3]]], 4), CLUSTER.node), CLUSTER, size)
    across = price(schedule(running, Placement([[[2], [1], [0], [3]]], 4), CLUSTER.node), CLUSTER, size)
    assert inside.node_bytes == 0
    assert across.node_bytes == across.bytes == 2 * size
    for move, pair in ((inside, (0, 1)), (across, (0, 2))):
        alone = float(CLUSTER.paths.alone_s(1 / CLUSTER.link_bandwidth, np.array([pair[0]]), np.array([pair[1]]))[0])
        latency = CLUSTER.paths.latency_matrix()[pair]
        assert move.seconds == pytest.approx(alone * size + latency)
        assert (move.rounds, move.commits, move.moves, move.staging_bytes) == (1, 1, 2, size)
    assert across.seconds > inside.seconds
    lost = price(schedule([[[0], [1], [2], [EMPTY]]], Placement([[[0], [1], [2], [3]]], 4)), CLUSTER, size)
    assert lost.stored == 1
    assert lost.seconds == size / STORAGE_BANDWIDTH


def test_break_even() -> None:
    assert break_even_s(0.0, 1.0, 1.0, 1.0) == 0
    assert break_even_s(1.0, 1.0, 1.0, 1.0) is None
    assert break_even_s(1.0, 1.0, 2.0, 2.0) is None
    assert break_even_s(0.0, 1.0, 2.0, 2.0) is None  # not even for nothing
    # a step of 1 s becomes 0.5 s: each second served saves one
    assert break_even_s(3.0, 1.0, 0.5, 0.5) == pytest.approx(3.0)
    # with as much again outside the layers that move, only each second second does
    assert break_even_s(3.0, 1.0, 0.5, 1.0) == pytest.approx(6.0)


def test_staging_is_what_the_memory_leaves() -> None:
    room = CLUSTER.memory_bytes.min() * 0.9
    assert staging_room(CLUSTER, 2, 3, room / 10, 0.0, 0.1) == 4
    with pytest.raises(Infeasible, match="nothing can be received"):
        staging_room(CLUSTER, 2, 5, room / 10, 0.0, 0.1)


def test_nothing_to_move_needs_no_room() -> None:
    spec = tiny_spec()
    held = np.array([[[0, 1], [2, 3], [4, 5], [6, 7]]] * 2)
    full = dataclasses.replace(CLUSTER, memory_bytes=np.full(4, 4 * spec.expert_bytes / 0.9 + 1e7))
    assert len(steps_of_move(held, Placement(held, 8), spec, full)) == 0
    with pytest.raises(Infeasible, match="nothing can be received"):
        steps_of_move(held, Placement(held[:, ::-1], 8), spec, full)


def test_a_horizon_keeps_layers_whose_move_does_not_pay() -> None:
    spec = tiny_spec()
    trace = tiny_trace(spec, 1024)
    running = solve(trace, CLUSTER, slots_per_rank=3, solver="random", tokens_per_rank=64).placement
    plans = {
        horizon: solve(trace, CLUSTER, slots_per_rank=3, previous=running, horizon_s=horizon, **FAST)
        for horizon in (1e-9, 10.0, 1e9)
    }
    moves = [plan.terms["migration"]["moves"] for plan in plans.values()]
    assert moves[0] == 0 < moves[2]
    assert plans[1e-9].placement.experts.tolist() == running.experts.tolist()
    seconds = [plan.terms["migration"]["move_s"] for plan in plans.values()]
    assert seconds == sorted(seconds)
    even = plans[10.0].terms["migration"]["break_even_s"]
    assert even is None or even <= 10.0
    eplb = solve(trace, CLUSTER, slots_per_rank=3, solver="eplb", previous=running, horizon_s=1e-9, tokens_per_rank=64)
    assert eplb.terms["migration"]["moves"] == 0
    assert any("left as it was" in note for note in eplb.notes)


def test_free_moves_find_what_a_few_moves_find() -> None:
    """A good placement in which a few strangers swapped seats: the search without a budget keeps the rest of it."""
    spec, cluster = tiny_spec(1, 32, 4), tiny_cluster(4, 2)
    # a seed with which a few moves from there beat a search of the same effort from nothing
    trace = synthetic.router(spec, 2048, seed=12, skew=0.3)
    given = {"slots_per_rank": 5, **FAST, "effort": 2e7, "rows": 2000}
    running = solve(trace, cluster, **(given | {"effort": 1e8})).placement.experts.copy()
    for rank, other in ((0, 5), (2, 7)):
        mine, theirs = (set(running[0, one].tolist()) for one in (rank, other))
        here, there = (
            running[0, one].tolist().index(min(who)) for one, who in ((rank, mine - theirs), (other, theirs - mine))
        )
        running[0, rank, here], running[0, other, there] = running[0, other, there], running[0, rank, here]
    scratch = solve(trace, cluster, **given)
    few = solve(trace, cluster, previous=running, constraints=Constraints(most_moves=8), **given)
    free = solve(trace, cluster, previous=running, **given)
    assert few.score_s < scratch.score_s
    assert free.score_s <= few.score_s * 1.001


def test_more_moves_never_make_the_fit_worse() -> None:
    spec = tiny_spec()
    trace = tiny_trace(spec, 1024)
    running = solve(trace, CLUSTER, slots_per_rank=3, solver="contiguous", tokens_per_rank=64).placement
    found = [
        solve(trace, CLUSTER, slots_per_rank=3, previous=running, constraints=Constraints(most_moves=moves), **FAST)
        for moves in (0, 2, 6)
    ]
    stay = found[0].terms["migration"]["stay_step_s"]
    assert found[0].score_s == pytest.approx(stay)
    assert all(plan.score_s <= stay * (1 + 1e-12) for plan in found)
    for moves, plan in zip((0, 2, 6), found, strict=True):
        assert plan.terms["migration"]["most_moves_of_a_layer"] <= moves


@given(st.integers(0, 10**6), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_what_is_lost_is_restored_with_one_move_each(seed: int, dead: int) -> None:
    rng = np.random.default_rng(seed)
    placement = random_placement(rng, 2, 6, 3, 10)
    running = np.delete(placement.experts, dead, axis=1)
    loads = rng.random((2, 10))
    found = restored(running, loads)
    assert found is not None
    was = holders(running, 10)
    missing = (~was.any(axis=2)).sum()
    assert (found.has & ~was).sum() == missing
    assert restored(running[:, :3], loads) is None


def test_survival_tells_who_is_gone_and_what_a_step_then_costs() -> None:
    spec = tiny_spec(layers=1, experts=6)
    cluster = tiny_cluster(2, 3)
    batches = make_batches(tiny_trace(spec, 768), 6, tokens_per_rank=64)
    costs = Costs.default(spec, cluster)
    # experts 0..2 have a copy on each node, 3..5 live on node 0 alone
    placement = Placement([[[0, 3], [1, 4], [2, 5], [0, EMPTY], [1, EMPTY], [2, EMPTY]]], 6)
    found = survival(placement, batches, costs)
    by_name = {loss.name: loss for loss in found.losses}
    gpus = [f"node{node}.gpu{gpu}" for node in range(2) for gpu in range(3)]
    assert list(by_name) == [*gpus, "node0", "node1"]
    assert [by_name[name].experts for name in gpus] == [1, 1, 1, 0, 0, 0]
    assert (by_name["node0"].experts, by_name["node1"].experts) == (3, 0)
    assert by_name["node1"].restore_s == 0.0
    assert by_name["node0"].restore_s == pytest.approx(spec.expert_bytes / STORAGE_BANDWIDTH)
    routes = np.concatenate([batches.routes(step).ravel() for step in range(len(batches))])
    assert by_name["node0"].picks == pytest.approx((routes >= 3).mean())
    # what a step costs is the score of what is left
    alive = [0, 1, 2, 4, 5]
    rest = costs_on(costs, cluster.restrict(alive))
    again = score(without_ranks(batches, np.array([3])), Placement(placement.experts[:, alive], 6), rest).mean_s
    assert by_name[gpus[3]].step_s == pytest.approx(again)
    assert by_name[gpus[3]].slower == pytest.approx(again / found.step_s)
    kept = without_ranks(batches, np.array([3]))
    assert np.array_equal(kept.token, batches.token)
    assert kept.home.max() == 4
    data = found.to_dict()
    assert data["gpu"]["survived_at_once"] == 3
    assert data["node"]["worst"]["name"] in by_name
    tight = Placement([[[0], [1], [2], [3], [4], [5]]], 6)
    gone = survival(tight, batches, costs, kinds=("gpu",))
    assert all(loss.step_s is None and loss.restore_s is None for loss in gone.losses)
    assert gone.to_dict()["gpu"]["never_survived"] == 6
    with pytest.raises(InputError, match="make the steps for them"):
        survival(placement, make_batches(tiny_trace(spec, 768), 4, tokens_per_rank=64), costs)


def test_losses_have_the_names_of_the_topology(tmp_path: Path) -> None:
    spec = tiny_spec(layers=1, experts=4)
    file = tmp_path / "named.toml"
    nodes = "".join(f'[[node]]\nname = "{name}"\n' for name in ("old", "spare", "new"))
    file.write_text(f'schema = 1\nbase = "h100-4x8-rail"\n{nodes}')
    left = Cluster.read(file).restrict([0, 1, 16, 17])
    batches = make_batches(tiny_trace(spec, 768), 4, tokens_per_rank=64)
    placement = Placement([[[0, 1], [2, 3], [0, 1], [2, 3]]], 4)
    found = survival(placement, batches, Costs.default(spec, left))
    assert [loss.name for loss in found.losses] == ["old.gpu0", "old.gpu1", "new.gpu0", "new.gpu1", "old", "new"]


def test_a_step_after_a_loss_shares_attention_as_the_step_before() -> None:
    spec = tiny_spec(layers=1, experts=4)
    cluster = tiny_cluster(2, 2)
    batches = make_batches(tiny_trace(spec, 768), 4, tokens_per_rank=64)
    costs = Costs.default(spec, cluster, attention_tp=2)
    placement = Placement([[[0, 1], [2, 3], [0, 1], [2, 3]]], 4)
    found = survival(placement, batches, costs, kinds=("node",))
    left = Costs.default(spec, cluster.restrict([0, 1]), attention_tp=2)
    again = score(without_ranks(batches, np.array([2, 3])), Placement(placement.experts[:, :2], 4), left).mean_s
    assert found.losses[1].step_s == pytest.approx(again)
    # three ranks make no whole groups of two
    with pytest.raises(InputError, match="attention_tp: 2 does not divide the 3 ranks"):
        survival(placement, batches, costs, kinds=("gpu",))


def test_what_is_lost_cannot_come_back_where_the_memory_leaves_no_room_for_it() -> None:
    spec = tiny_spec(layers=1, experts=6)
    batches = make_batches(tiny_trace(spec, 768), 6, tokens_per_rank=64)
    placement = Placement([[[0, 3], [1, 4], [2, 5], [0, EMPTY], [1, EMPTY], [2, EMPTY]]], 6)
    for room in (0.5, 1.5):
        bytes_needed = 2 * spec.expert_bytes + other_weights(spec) + room * spec.expert_bytes
        cluster = dataclasses.replace(tiny_cluster(2, 3), memory_bytes=np.full(6, bytes_needed / (1 - RESERVED_MEMORY)))
        costs = Costs.default(spec, cluster)
        if room < 1:
            with pytest.raises(Infeasible, match="nothing can be received"):
                survival(placement, batches, costs, kinds=("gpu",))
        else:
            assert survival(placement, batches, costs, kinds=("gpu",)).losses[0].restore_s


def test_survivors_are_found_by_name() -> None:
    whole = Cluster.preset("h100-4x8-rail")
    left = whole.edit(without=("node0.gpu2", "node3"))
    assert survivors(whole, left, 32).tolist() == [rank for rank in range(24) if rank != 2]
    with pytest.raises(InputError, match="before anything was taken away"):
        survivors(left, whole, left.ranks)
