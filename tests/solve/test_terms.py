"""What is asked of a plan beside speed: nothing that breaks a constraint gets out, and what cannot be is proven."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import Infeasible, InputError, UnknownName
from moesim.cluster import Cluster
from moesim.placement import EMPTY, Placement
from moesim.solve import SOLVERS, Constraints, Objective, Plan, Problem, solve
from moesim.solve.conform import conform
from moesim.solve.limits import holders, limits_of
from moesim.solve.memory import RESERVED_MEMORY, other_weights, slots_that_fit
from moesim.solve.objective import Score, score
from moesim.solve.windows import domain_windows, joined, time_windows
from moesim.trace import Trace
from moesim.trace.batching import make_batches
from tests.solve.conftest import tiny_cluster, tiny_spec, tiny_trace

FAST = {"effort": 1e6, "rows": 300}
SPEC = tiny_spec(groups=2)
TRACE, CLUSTER = tiny_trace(SPEC, 1024), tiny_cluster()


@pytest.fixture(scope="module")
def trace() -> Trace:
    return TRACE


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return CLUSTER


def plan_of(trace: Trace, cluster: Cluster, **changes: Any) -> Plan:
    given_: dict[str, Any] = {"slots_per_rank": 4, "tokens_per_rank": 64, "jobs": 1} | changes
    if given_.get("solver", "moesim") == "moesim":
        given_ = FAST | given_
    return solve(trace, cluster, **given_)


def check(plan: Plan, asked: Constraints, cluster: Cluster, loads: np.ndarray, running: np.ndarray | None) -> None:
    """Every constraint, counted anew without the code that holds them."""
    experts = plan.placement.experts
    filled = (experts != EMPTY).sum(axis=2)
    has = plan.placement.has
    assert has.any(axis=2).all()
    assert all(len(set(row[row != EMPTY])) == (row != EMPTY).sum() for row in experts.reshape(-1, experts.shape[2]))
    if asked.rank_slots is not None:
        assert (filled <= np.array(asked.rank_slots)).all()
    if asked.slot_budget is not None:
        assert filled.max(axis=1).sum() <= asked.slot_budget
    if asked.hot and asked.mode == "hard":
        for layer in range(len(has)):
            for expert in np.argsort(-loads[layer], kind="stable")[: asked.hot]:
                assert len(set(cluster.node[has[layer, expert]])) >= asked.hot_nodes
    most = asked.moves(SPEC.expert_bytes)
    if most is not None:
        was = holders(running, SPEC.experts)
        assert ((has & ~was).sum(axis=(1, 2)) <= most).all()


@settings(max_examples=25, deadline=None)
@given(
    rank_slots=st.none() | st.tuples(*[st.integers(1, 4)] * 4),
    slot_budget=st.none() | st.integers(3, 8),
    most_moves=st.none() | st.integers(0, 6),
    most_bytes=st.none() | st.sampled_from([0.0, 3.5 * SPEC.expert_bytes]),
    hot=st.integers(0, 8),
    hot_nodes=st.integers(1, 3),
    mode=st.sampled_from(["hard", "soft"]),
    lost=st.integers(0, 2),
    aim=st.sampled_from(["time", "traffic", "load"]),
    risk=st.sampled_from(["mean", "cvar"]),
    solver=st.sampled_from(["moesim", "eplb", "contiguous"]),
    horizon_s=st.none() | st.sampled_from([1e-3, 1e3]),
)
def test_whatever_is_asked_together_is_kept_or_refused(
    lost: int, aim: Any, risk: Any, solver: str, horizon_s: float | None, **asked: Any
) -> None:
    limits, trace, cluster = Constraints(**asked), TRACE, CLUSTER
    # what runs, some experts of it lost with a rank
    running = np.tile(np.arange(16).reshape(4, 4) % 8, (2, 1, 1))
    running[running < lost] = EMPTY
    try:
        plan = plan_of(
            trace, cluster, solver=solver, constraints=limits, objective=Objective(aim, risk), previous=running,
            horizon_s=horizon_s,
        )  # fmt: skip
    except Infeasible:
        return
    batches = make_batches(trace, 4, tokens_per_rank=64)
    loads = np.stack([np.bincount(trace.routes[batches.token, layer].ravel(), minlength=8) for layer in range(2)])
    check(plan, limits, cluster, loads, running)


def possible(room: np.ndarray, node: np.ndarray, experts: int, hot: set[int], nodes: int) -> bool:
    """Whether any placement of a few experts respects room and spread, by trying all."""
    ranks = len(room)
    options = [
        [held for size in range(1, ranks + 1) for held in itertools.combinations(range(ranks), size)
         if expert not in hot or len({int(node[r]) for r in held}) >= nodes]
        for expert in range(experts)
    ]  # fmt: skip
    return any(
        (np.bincount([rank for held in choice for rank in held], minlength=ranks) <= room).all()
        for choice in itertools.product(*options)
    )


@settings(max_examples=60, deadline=None)
@given(
    room=st.lists(st.integers(0, 3), min_size=4, max_size=4), hot=st.integers(0, 3), nodes=st.integers(1, 3),
    split=st.sampled_from([(0, 0, 1, 1), (0, 1, 1, 2), (0, 0, 0, 1)]),
)  # fmt: skip
def test_infeasible_is_said_exactly_where_no_placement_exists(
    room: list[int], hot: int, nodes: int, split: tuple[int, ...]
) -> None:
    node = np.array(split, np.int32)
    loads = np.array([[4.0, 3.0, 2.0]])
    exists = possible(np.array(room), node, 3, set(range(hot)), nodes)
    asked = Constraints(rank_slots=tuple(room), hot=hot, hot_nodes=nodes)
    try:
        limits = limits_of(asked, loads, node, 3, 1.0)
    except Infeasible:
        assert not exists
        return
    assert exists
    found, _ = conform(np.full((1, 4, 3), EMPTY), limits, loads)
    assert not limits.breaches(found)


def test_least_moves_are_found_and_fewer_are_proven_impossible(trace: Trace, cluster: Cluster) -> None:
    # three hot experts live on node 0 alone: three moves are needed, two will not do
    running = np.array([[[0, 1, 2], [3, 4, 5], [6, 7, 3], [4, 5, 6]]] * 2)
    loads = np.array([[9.0, 8.0, 7.0, 1, 1, 1, 1, 1]] * 2)
    node = cluster.node
    for moves in (2, 3):
        asked = Constraints(hot=3, most_moves=moves)
        if moves == 2:
            with pytest.raises(Infeasible, match="layer 0 needs at least 3"):
                limits_of(asked, loads, node, 3, 1.0, running)
            continue
        limits = limits_of(asked, loads, node, 3, 1.0, running)
        found, changed = conform(running, limits, loads)
        assert changed == 2
        assert not limits.breaches(found)
        assert (holders(found, 8) & ~limits.was).sum() == 6


def test_what_only_all_together_forbid_is_proven_by_the_program() -> None:
    # room for the hot expert on node 1 is there only if expert 2 leaves it, which takes a second move
    running = np.array([[[0, 1], [2, 3]]])
    limits = limits_of(Constraints(hot=1, most_moves=1), np.array([[9.0, 1, 1, 1]]), np.array([0, 1]), 3, 1.0,
                       np.pad(running, ((0, 0), (0, 0), (0, 1)), constant_values=EMPTY),
                       room=np.array([[3, 2]]))  # fmt: skip
    with pytest.raises(Infeasible, match=r"it is proven .mixed-integer program. that no placement of layer 0"):
        conform(np.pad(running, ((0, 0), (0, 0), (0, 1)), constant_values=EMPTY), limits, np.array([[9.0, 1, 1, 1]]))


def test_bad_constraints_and_objectives_are_refused(trace: Trace, cluster: Cluster) -> None:
    for wrong, message in (
        ({"rank_slots": (1, -1)}, "rank_slots: expected a whole number"),
        ({"slot_budget": 0}, "slot_budget: expected at least 1"),
        ({"most_moves": -1}, "most_moves: expected at least 0"),
        ({"hot": -1}, "hot: expected at least 0"),
        ({"hot_price": float("nan")}, "hot_price"),
    ):
        with pytest.raises(InputError, match=message):
            Constraints(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="did you mean 'soft'"):
        Constraints(mode="sofft")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="did you mean 'traffic'"):
        Objective("trafic")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="did you mean 'cvar'"):
        Objective("time", "cvarr")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="share above 0"):
        Objective(worst=0.0)
    with pytest.raises(InputError, match="needs the placement that runs"):
        plan_of(trace, cluster, constraints=Constraints(most_moves=3))
    with pytest.raises(InputError, match="horizon needs the placement that runs"):
        plan_of(trace, cluster, horizon_s=5.0)
    with pytest.raises(InputError, match="expected a number up to 4 for each of 4 ranks"):
        plan_of(trace, cluster, constraints=Constraints(rank_slots=(4, 4)))
    with pytest.raises(InputError, match="9 hot experts of 8"):
        plan_of(trace, cluster, constraints=Constraints(hot=9))
    with pytest.raises(Infeasible, match="on 3 nodes, the cluster has 2"):
        plan_of(trace, cluster, constraints=Constraints(hot=1, hot_nodes=3))
    with pytest.raises(Infeasible, match=r"slot budget: .* each of 2 layers needs 2 slots a rank"):
        plan_of(trace, cluster, constraints=Constraints(slot_budget=3))
    with pytest.raises(UnknownName, match="did you mean 'domain'"):
        plan_of(trace, cluster, windows="domains")
    with pytest.raises(InputError, match="has 1 domain"):
        plan_of(trace, cluster, windows="domain")


def test_a_slot_budget_beyond_all_slots_is_one_that_holds_them_all(trace: Trace, cluster: Cluster) -> None:
    whole = 2 * 4
    plans = [plan_of(trace, cluster, solver="lpt", constraints=Constraints(slot_budget=n)) for n in (whole, 10**30)]
    assert np.array_equal(*(plan.placement.experts for plan in plans))


def a_score(step_s: list[float], window: list[int]) -> Score:
    column = np.array(step_s)[:, None]
    return Score(
        np.array(step_s), column, np.ones_like(column), column / 2, column / 4, np.array(window), np.zeros(len(step_s))
    )


def test_cvar_is_the_mean_of_the_worst_windows_and_mean_that_of_all() -> None:
    four = a_score([1, 3, 2, 2, 5, 5, 8, 8], [0, 0, 1, 1, 2, 2, 3, 3])
    assert Objective().value(four) == pytest.approx(4.25)
    assert Objective("time", "cvar", 0.25).value(four) == 8
    assert Objective("time", "cvar", 0.5).value(four) == 6.5
    assert Objective("time", "cvar", 0.375).value(four) == pytest.approx((8 + 5 / 2) / 1.5)  # half a window counts half
    assert Objective("time", "cvar", 1.0).value(four) == pytest.approx(4.25)
    assert Objective("traffic").value(four) == pytest.approx(4.25 / 2)
    assert Objective("load", "cvar").layer_values(four).tolist() == [2.0]
    assert [Objective(risk="cvar", worst=share).windows(8) for share in (0.01, 0.25, 0.3, 1.0)] == [1, 2, 3, 8]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=12), st.floats(0.05, 1.0))
def test_cvar_is_at_least_the_mean_and_at_most_the_worst(values: list[float], share: float) -> None:
    found = a_score(values, list(range(len(values))))
    tail = Objective("time", "cvar", share).value(found)
    assert np.mean(values) - 1e-9 <= tail <= max(values) + 1e-9


def test_single_aims_are_met_better_than_by_the_whole_time(trace: Trace, cluster: Cluster) -> None:
    plans = {aim: plan_of(trace, cluster, objective=Objective(aim), effort=2e7) for aim in ("time", "traffic", "load")}
    batches = make_batches(trace, 4, tokens_per_rank=64)
    from moesim.costs import Costs

    costs = Costs.default(SPEC, cluster, transport="hierarchical")
    scores = {aim: score(time_windows(batches), plan.placement, costs) for aim, plan in plans.items()}
    for aim in plans:
        best = min(scores, key=lambda name: Objective(aim).value(scores[name]))
        assert Objective(aim).value(scores[aim]) <= Objective(aim).value(scores[best]) * 1.02
    assert plans["time"].score_s <= min(plan.score_s for plan in plans.values()) * 1.02


def test_windows_by_domain_hold_one_domain_each(cluster: Cluster) -> None:
    whole = tiny_trace(SPEC, 1024)
    named = dataclasses.replace(whole, domain=np.arange(1024) // 512, domains=("one", "two"))
    cut = domain_windows(named, 4, tokens_per_rank=32)
    assert [set(named.domain[window.token].tolist()) for window in cut] == [{0}, {1}]
    both = joined(cut)
    assert len(both) == sum(len(window) for window in cut)
    assert both.offsets[-1] == len(both.token)
    plan = plan_of(named, cluster, windows="domain", objective=Objective("time", "cvar", 0.5))
    assert plan.terms["windows"] == 2
    assert plan.terms["worst_window_s"] >= plan.score_s
    with pytest.raises(InputError, match="of one trace"):
        joined([time_windows(make_batches(whole, 4, tokens_per_rank=32))[0], cut[0]])


def test_a_soft_spread_pays_for_what_it_does_not_do(trace: Trace, cluster: Cluster) -> None:
    free, dear = (
        plan_of(trace, cluster, constraints=Constraints(hot=3, mode="soft", hot_price=price)) for price in (0.0, 10.0)
    )
    assert dear.terms["hot_spread"] == 1.0
    # two searches, neither of which proves its answer
    assert free.score_s <= dear.score_s * 1.005


def test_a_slot_budget_goes_where_copies_pay(cluster: Cluster) -> None:
    # layer 0 is even, layer 1 has one expert that takes half of the picks
    rng = np.random.default_rng(0)
    routes = np.argsort(rng.random((2048, 2, 8)), axis=2)[:, :, :2]
    routes[:1536, 1, 0] = 0
    routes[:1536, 1, 1] = rng.integers(1, 8, 1536)
    skewed = Trace(SPEC, routes=routes.astype(np.int16), request=np.arange(2048) // 8)
    plan = plan_of(skewed, cluster, solver="lpt", constraints=Constraints(slot_budget=5), tokens_per_rank=256)
    used = (plan.placement.experts != EMPTY).any(axis=1).sum(axis=1)
    assert used.tolist() == [2, 3]
    assert any("slot budget: 5 of 5" in note for note in plan.notes)
    # where a further copy only costs weight reads, the budget is not used up
    few = plan_of(skewed, tiny_cluster(1, 4), solver="lpt", constraints=Constraints(slot_budget=8), tokens_per_rank=2,
                  transport="direct")  # fmt: skip
    assert (few.placement.experts != EMPTY).any(axis=1).sum() < 8


def test_slow_ranks_get_less_work(trace: Trace, cluster: Cluster) -> None:
    slow = dataclasses.replace(cluster, speed=np.array([1.0, 1.0, 1.0, 0.25]))
    plan = plan_of(trace, slow, objective=Objective("load"), effort=1e7)
    batches = make_batches(trace, 4, tokens_per_rank=64)
    from moesim.costs import Costs
    from moesim.solve.objective import step_flow

    costs = Costs.default(SPEC, slow, transport="hierarchical")
    load = step_flow(batches, 0, plan.placement, costs, "nearest").slot_tokens.sum(axis=(0, 2))
    assert load[3] < 0.7 * load[:3].mean()


@pytest.mark.parametrize("solver", ["moesim", "eplb", "lpt"])
def test_a_dead_rank_is_planned_around_with_the_least_moves(trace: Trace, solver: str) -> None:
    whole = tiny_cluster(2, 3)
    running = plan_of(trace, whole, slots_per_rank=2).placement
    left = whole.restrict([0, 1, 2, 3, 4])
    survivors = running.experts[:, :5]
    missing = (~holders(survivors, 8).any(axis=2)).sum(axis=1)
    plan = plan_of(trace, left, slots_per_rank=2, solver=solver, previous=survivors,
                   constraints=Constraints(most_moves=int(missing.max())))  # fmt: skip
    assert plan.terms["migration"]["most_moves_of_a_layer"] <= missing.max()
    assert plan.terms["migration"]["from_storage"] == missing.sum()
    if missing.max():
        with pytest.raises(Infeasible, match="for experts that are nowhere"):
            plan_of(trace, left, slots_per_rank=2, previous=survivors,
                    constraints=Constraints(most_moves=int(missing.max()) - 1))  # fmt: skip


def test_rules_hold_for_third_party_solvers_too(
    trace: Trace, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stubborn(problem: Problem) -> Any:
        return SOLVERS.get("contiguous")(problem)

    monkeypatch.setitem(SOLVERS._builtin, "stubborn", "nowhere:stubborn")
    monkeypatch.setitem(SOLVERS._loaded, "stubborn", stubborn)
    asked = Constraints(rank_slots=(4, 4, 3, 2), hot=3)
    plan = plan_of(trace, cluster, solver="stubborn", constraints=asked)
    assert ((plan.placement.experts != EMPTY).sum(axis=2) <= np.array([4, 4, 3, 2])).all()
    assert any("had to change to respect the constraints" in note for note in plan.notes)
    assert isinstance(plan.placement, Placement)


def with_room(*slots: float) -> Cluster:
    """The cluster with memory for so many slots in each layer of each rank, beside other weights and the reserve."""
    needed = other_weights(SPEC) + np.array(slots) * SPEC.layers * SPEC.expert_bytes
    return dataclasses.replace(CLUSTER, memory_bytes=needed / (1 - RESERVED_MEMORY))


@pytest.mark.parametrize("solver", ["eplb", "moesim"])
def test_memory_holds_the_slots_that_a_rank_may_fill(trace: Trace, solver: str):
    uneven = with_room(4.5, 4.5, 2.5, 2.5)
    with pytest.raises(Infeasible, match=r"4 slots of rank 2 .* use at most 2 slots there"):
        plan_of(trace, uneven, solver=solver)
    asked = Constraints(rank_slots=tuple(np.minimum(slots_that_fit(SPEC, uneven), 4).tolist()))
    plan = plan_of(trace, uneven, solver=solver, constraints=asked)
    filled = (plan.placement.experts != EMPTY).sum(axis=2)
    assert filled.max(axis=0).tolist() == [4, 4, 2, 2]
    # half an expert more in each of two layers is room to receive one, as slots that stay empty take no memory
    other = plan_of(trace, uneven, solver="random", constraints=asked)
    moved = plan_of(trace, uneven, solver=solver, constraints=asked, previous=other.placement)
    assert moved.terms["migration"]["moves"] > 0
    assert moved.terms["migration"]["staging_bytes"] <= SPEC.expert_bytes


def test_memory_holds_the_slots_of_a_budget(trace: Trace):
    room = with_room(*[3.0] * 4)  # 3 slots a layer on average, of 4
    with pytest.raises(Infeasible, match="use at most 3 slots there"):
        plan_of(trace, room, solver="eplb")
    plan = plan_of(trace, room, solver="eplb", constraints=Constraints(slot_budget=6))
    assert (plan.placement.experts != EMPTY).sum(axis=(0, 2)).max() <= 6
