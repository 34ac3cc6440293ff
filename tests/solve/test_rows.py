"""What the search balances: scenarios as uneven as steps to come, and traffic of kinds that were not seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import InputError
from moesim.solve import Objective, solve
from moesim.solve.search.rows import sample_rows, steadied, with_unseen
from moesim.solve.search.stages import make_stages
from moesim.solve.search.state import COVER, NEAREST, PICK_HASH, ROW_HASH
from tests.solve.conftest import tiny_cluster, tiny_spec, tiny_trace
from tests.solve.test_sharing import least


def test_how_much_traffic_is_taken_to_be_unseen() -> None:
    assert Objective("load").unseen_share(1, 8) == 1 / 2
    assert Objective("load").unseen_share(4, 8) == 1 / 5
    assert Objective("load").unseen_share(1, 1) == 0  # nothing tells kinds of traffic apart
    assert Objective("time").unseen_share(1, 8) == 0
    assert Objective("time", unseen=0.25).unseen_share(1, 1) == 0.25
    assert Objective("load", unseen=0.0).unseen_share(1, 8) == 0
    for wrong in (-0.1, 1.0):
        with pytest.raises(InputError, match=f"unseen: expected a share of 0 to 0.9, got {wrong}"):
            Objective(unseen=wrong)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scenarios=st.integers(1, 12), share=st.floats(0.05, 0.8))
def test_unseen_scenarios_deal_what_was_seen_anew(seed: int, scenarios: int, share: float) -> None:
    demand = np.random.default_rng(seed).lognormal(0, 1, (scenarios, 3, 16))
    found = with_unseen(demand / 2, demand, share, 40, seed)
    assert len(found) >= 20  # few scenarios are repeated
    more = round(share * len(found))
    repeats = (len(found) - more) // scenarios
    more = len(found) - repeats * scenarios
    assert abs(more - share * len(found)) <= 1
    np.testing.assert_array_equal(found[:-more], np.tile(demand / 2, (repeats, 1, 1)))
    for index, dealt in enumerate(found[-more:]):
        seen = demand[index % scenarios]
        np.testing.assert_array_equal(np.sort(dealt), np.sort(seen))
        assert (dealt != seen).any(axis=1).all()
    assert len(np.unique(found[-more:], axis=0)) == more
    np.testing.assert_array_equal(with_unseen(demand, demand, 0.0, 40, seed), demand)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scenarios=st.integers(3, 12), steps=st.floats(0.1, 20))
def test_scenarios_keep_their_mean_and_vary_as_much_as_steps_of_another_window(
    seed: int, scenarios: int, steps: float
) -> None:
    rng = np.random.default_rng(seed)
    demand, tokens = rng.lognormal(0, 1, (scenarios, 2, 8)), np.full(scenarios, 100.0)
    found = steadied(demand, tokens, steps)
    np.testing.assert_allclose(found.mean(axis=0), demand.mean(axis=0))
    wanted = min((max(steps, 1) + 1) / (scenarios - 1), 1)
    np.testing.assert_allclose(found.var(axis=0), demand.var(axis=0) * wanted)
    np.testing.assert_array_equal(steadied(demand[:2], tokens[:2], steps), demand[:2])


def test_scenarios_vary_as_much_as_a_step_that_was_not_fitted() -> None:
    rng, error, parts = np.random.default_rng(0), 1.0, 8
    # parts of a window, and a step of another one as long, all of the same mean
    windows = rng.normal(100, error * np.sqrt(parts), (20_000, parts))
    steps = rng.normal(100, error, 20_000)
    off = np.mean((steps - windows.mean(axis=1)) ** 2)
    found = np.array([steadied(one[:, None, None], np.ones(parts), 1.0)[:, 0, 0] for one in windows])
    assert np.mean((found - windows.mean(axis=1, keepdims=True)) ** 2) == pytest.approx(off, rel=0.05)


@pytest.mark.parametrize("aim", ["load", "time", "traffic"])
@pytest.mark.parametrize("risk", ["mean", "cvar"])
def test_which_scenarios_are_drawn_to_their_mean(make_problem, aim: str, risk: str) -> None:
    problem = make_problem(tokens=512)  # two windows, of two steps in all
    problem = dataclasses.replace(problem, objective=Objective(aim, risk=risk))
    parts = 8 if risk == "mean" else len(problem.batches)
    found = sample_rows(problem, 512, parts).demand
    assert len(found) == parts
    # as equal runs of the tokens have it
    trace, token = problem.batches[0].trace, np.concatenate([window.token for window in problem.batches])
    runs = np.array_split(token, 8)
    raw = np.stack(
        [np.bincount(trace.routes[run, 0].ravel(), minlength=problem.experts) * 256 / len(run) for run in runs]
    )
    if risk == "mean":
        np.testing.assert_allclose(sample_rows(problem, 512, parts, drawn=False).demand[:, 0], raw)
        np.testing.assert_allclose(found[:, 0].mean(axis=0), raw.mean(axis=0))
        assert found[:, 0].std(axis=0).mean() < 0.75 * raw.std(axis=0).mean()  # sqrt((2 + 1) / (8 - 1)) is 0.65
    else:
        assert found[:, 0].sum(axis=1).tolist() == [512.0] * len(problem.batches)  # whole picks of whole windows


@pytest.mark.parametrize(("policy", "aim", "nodes", "scenarios", "drawn"), [
    ("nearest", "time", 2, 16, True), ("hash", "time", 1, 16, True), ("shares", "time", 2, 16, True),
    ("shares", "time", 1, 8, False), ("batch-lp", "time", 2, 8, False), ("batch-lp", "load", 2, 64, True),
])  # fmt: skip
def test_how_many_scenarios_a_search_looks_at(
    make_problem, policy: str, aim: str, nodes: int, scenarios: int, drawn: bool
) -> None:
    problem = make_problem(nodes=nodes, ranks_per_node=4 // nodes, policy=policy)
    problem = dataclasses.replace(problem, objective=Objective(aim))
    (stage,) = make_stages(problem, 1)
    doubted = aim == "load" or policy in ("nearest", "hash")
    wanted = sample_rows(problem, int(problem.options["rows"]), scenarios, drawn=drawn, doubted=doubted)
    np.testing.assert_array_equal(stage.rows.demand, wanted.demand)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("aim", ["time", "traffic", "load"])
@pytest.mark.parametrize("policy", ["nearest", "hash", "random", "batch-lp", "shares", "token-aware"])
def test_who_serves_and_whether_load_is_poured(make_problem, policy: str, aim: str, nodes: int) -> None:
    problem = make_problem(nodes=nodes, ranks_per_node=4 // nodes, policy=policy)
    (stage,) = make_stages(dataclasses.replace(problem, objective=Objective(aim)), 1)
    covers = policy in ("shares", "token-aware") and nodes > 1 and aim != "load"
    assert stage.poured == (policy in ("batch-lp", "shares", "token-aware") and aim != "traffic" and not covers)
    by_copies = {"hash": ROW_HASH, "random": PICK_HASH, "batch-lp": PICK_HASH}.get(policy, NEAREST)
    assert stage.policy == (COVER if covers else by_copies)


def test_a_plan_for_unseen_traffic_is_more_balanced_in_it() -> None:
    spec, cluster = tiny_spec(), tiny_cluster()
    trace = tiny_trace(spec, 1024)
    named = dataclasses.replace(trace, domain=np.zeros(trace.rows, np.int32), domains=("seen", "unseen"))
    balance: dict[float | None, float] = {}
    for share in (None, 0.0):
        plan = solve(
            named, cluster, slots_per_rank=3, policy="batch-lp", tokens_per_rank=64, jobs=1, effort=2e7,
            objective=Objective("load", unseen=share),
        )  # fmt: skip
        assert any(note.startswith("planned for unseen traffic too: 50%") for note in plan.notes) == (share is None)
        rng, unit = np.random.default_rng(1), np.ones(cluster.ranks)
        slowest = [
            least(held, rng.permutation(loads) / loads.sum(), unit)
            for held, loads in zip(plan.placement.has, trace.loads, strict=True)
            for _ in range(20)
        ]
        balance[share] = np.mean(1 / np.array(slowest)) / cluster.ranks
    assert balance[None] > balance[0.0] + 0.01
