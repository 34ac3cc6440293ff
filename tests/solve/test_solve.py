"""solve(): verified plans, honest notes, and nothing impossible gets out."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.base.errors import FormatError, Infeasible, InputError, UnknownName
from moesim.cluster import Cluster, Deployment
from moesim.costs import Costs
from moesim.simulate import simulate
from moesim.solve import SOLVERS, Plan, Problem, solve
from moesim.solve.objective import score
from moesim.spec import ModelSpec
from moesim.trace import Trace
from moesim.trace.batching import make_batches
from tests.solve.conftest import tiny_cluster, tiny_spec, tiny_trace

FAST = {"effort": 2e6, "rows": 400}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return tiny_trace(tiny_spec(groups=2), 1024)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return tiny_cluster()


def plan_of(trace: Trace, cluster: Cluster, **changes: Any) -> Plan:
    given: dict[str, Any] = {"slots_per_rank": 3, "tokens_per_rank": 64, "jobs": 1} | changes
    if given.get("solver", "moesim") == "moesim":
        given = FAST | given
    return solve(trace, cluster, **given)


@pytest.mark.parametrize("solver", SOLVERS.names())
def test_every_solver_gives_a_plan_that_is_valid_scored_and_bounded(
    trace: Trace, cluster: Cluster, solver: str
) -> None:
    plan = plan_of(trace, cluster, solver=solver, deadline_s=4)
    assert plan.placement.experts.shape == (2, 4, 3)
    assert plan.solver == solver
    assert 0 < plan.bound_s <= plan.score_s
    assert plan.gap == pytest.approx(plan.score_s / plan.bound_s - 1)
    assert (plan.layer_gap >= 0).all()
    batches = make_batches(trace, 4, tokens_per_rank=64)
    again = score(batches, plan.placement, Costs.default(trace.spec, cluster, transport="hierarchical"))
    assert plan.score_s == pytest.approx(again.mean_s)


@pytest.mark.parametrize("policy", ["nearest", "random", "token-aware", "shares"])
def test_steps_are_scored_alike_and_in_order_whatever_the_threads(trace: Trace, cluster: Cluster, policy: str) -> None:
    batches = make_batches(trace, 4, tokens_per_rank=32)
    plan = plan_of(trace, cluster, solver="eplb", policy=policy)
    costs = Costs.default(trace.spec, cluster, transport="hierarchical")
    alone, shared = (score(batches, plan.placement, costs, policy, seed=1, jobs=jobs) for jobs in (1, 4))
    assert len(set(alone.step_s)) > 1
    for name in ("step_s", "layer_s", "balance", "traffic_s", "load_s", "window"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(shared, name))


@pytest.mark.parametrize("policy", ["nearest", "hash", "uniform", "random"])
@pytest.mark.parametrize("transport", ["hierarchical", "direct", "rank-dedup", "allgather"])
def test_moesim_is_never_worse_than_a_baseline_on_the_traffic_it_fits(
    trace: Trace, cluster: Cluster, policy: str, transport: str
) -> None:
    settings = {"policy": policy, "transport": transport}
    ours = plan_of(trace, cluster, **settings)
    for name in SOLVERS.names():
        if name not in ("moesim", "cp-sat"):
            theirs = plan_of(trace, cluster, solver=name, **settings)
            assert ours.score_s <= theirs.score_s * (1 + 1e-12), name


def test_the_same_seed_gives_the_same_plan_whatever_the_threads(trace: Trace, cluster: Cluster) -> None:
    first, second = plan_of(trace, cluster, seed=5), plan_of(trace, cluster, seed=5, jobs=2)
    assert first.digest == second.digest
    assert first.placement == second.placement


def test_a_deadline_that_cuts_is_told_and_the_answer_still_beats_the_baselines(trace: Trace, cluster: Cluster) -> None:
    plan = plan_of(trace, cluster, deadline_s=1e-3, effort=1e9)
    assert any("the deadline" in note for note in plan.notes)
    assert plan.score_s <= plan_of(trace, cluster, solver="eplb").score_s


def test_copies_that_cost_time_are_told(trace: Trace) -> None:
    # a few tokens a rank: every further copy is one more set of weights to read; many tokens: copies pay
    node, big = Cluster.preset("h100-1x8"), ModelSpec.preset("mixtral-8x22b")
    for tokens, told in ((2, True), (1024, False)):
        plan = plan_of(trace, node, slots_per_rank=2, tokens_per_rank=tokens, dims=big, transport="direct")
        assert any("fewer copies are faster" in note for note in plan.notes) == told, (tokens, plan.notes)


def test_the_running_placement_is_a_candidate(trace: Trace, cluster: Cluster) -> None:
    good = plan_of(trace, cluster, effort=2e7)
    again = plan_of(trace, cluster, effort=0, previous=good.placement)
    assert again.score_s <= good.score_s
    with pytest.raises(InputError, match=r"previous placement: has .layers, ranks, slots per rank, experts."):
        plan_of(trace, cluster, slots_per_rank=2, previous=good.placement)
    # what runs on fewer slots can be extended
    assert plan_of(trace, cluster, slots_per_rank=4, effort=0, previous=good.placement).placement.slots_per_rank == 4


def test_plans_survive_writing_reading_and_pickling(trace: Trace, cluster: Cluster, tmp_path: Path) -> None:
    plan = plan_of(trace, cluster)
    plan.write(tmp_path / "plan.json")
    read = Plan.read(tmp_path / "plan.json")
    assert read.to_dict() == plan.to_dict()
    assert read.digest == plan.digest
    assert read.placement == plan.placement
    assert pickle.loads(pickle.dumps(plan)).to_dict() == plan.to_dict()
    read.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


def broken(text: str) -> Iterator[tuple[str, str]]:
    data = json.loads(text)
    yield text[: len(text) // 2], "expected a plan in JSON"
    yield json.dumps([1]), "schema: expected 'moesim-plan/1', found None"
    yield json.dumps(data | {"schema": "moesim-plan/9"}), "found 'moesim-plan/9'"
    yield json.dumps(data | {"score_s": "fast"}), "score_s: .*number"
    yield json.dumps({k: v for k, v in data.items() if k != "policy"}), "policy: .*required"
    yield json.dumps(data | {"colour": 1}), "colour: "
    yield json.dumps(data | {"score_s": data["bound_s"] / 2}), "below the bound"
    held = data["placement"]
    for experts, message in (
        ([[[0, 0, 1]] * 4] * 2, "placement: "),
        ([[[99, 0, 1]] * 4] * 2, "placement: .*99"),
        ([[[0, 1, 2]], [[3]]], "placement: "),
    ):
        yield json.dumps(data | {"placement": held | {"experts": experts}}), message


def test_bad_plan_files_say_where_and_what(trace: Trace, cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan_of(trace, cluster, solver="lpt").write(path)
    for text, message in list(broken(path.read_text())):
        path.write_text(text)
        with pytest.raises(FormatError, match=f"plan.json: .*{message}"):
            Plan.read(path)
    with pytest.raises(InputError, match=r"nowhere\.json: cannot be read"):
        Plan.read(tmp_path / "nowhere.json")


def test_what_cannot_be_is_said_and_why(trace: Trace, cluster: Cluster) -> None:
    with pytest.raises(Infeasible, match="4 ranks of 1 slot can hold 4 experts, tiny has 8; give at least 2 slots"):
        plan_of(trace, cluster, slots_per_rank=1)
    with pytest.raises(UnknownName, match="unknown solver 'moesin': did you mean 'moesim'"):
        plan_of(trace, cluster, solver="moesin")
    with pytest.raises(UnknownName, match="unknown dispatch policy 'nearst': did you mean 'nearest'"):
        plan_of(trace, cluster, policy="nearst")
    with pytest.raises(UnknownName, match=r"unknown option of solver 'moesim' 'efort': did you mean 'effort'"):
        plan_of(trace, cluster, efort=1)
    with pytest.raises(InputError, match="solver 'lpt' takes no options; leave 'effort' out"):
        plan_of(trace, cluster, solver="lpt", effort=1)
    with pytest.raises(UnknownName, match="unknown phase 'prefil'"):
        plan_of(trace, cluster, phase="prefil")
    with pytest.raises(InputError, match="deadline: expected more than 0 s, got 0"):
        plan_of(trace, cluster, deadline_s=0)
    heavy = dataclasses.replace(ModelSpec.preset("mixtral-8x22b"), name="heavy", hidden=200_000)
    with pytest.raises(Infeasible, match=r"memory: the experts of 3 slots of rank 0 in 2 layers need .* GB"):
        plan_of(trace, cluster, dims=heavy)
    other = Costs.default(trace.spec, tiny_cluster(1, 4))
    with pytest.raises(InputError, match="costs are for cluster"):
        plan_of(trace, cluster, costs=other)
    with pytest.raises(InputError, match="steps are for 2 ranks"):
        solve(make_batches(trace, 2, tokens_per_rank=64), cluster, slots_per_rank=3)


def test_a_deployment_plans_for_part_of_the_cluster(trace: Trace) -> None:
    plan = plan_of(trace, tiny_cluster(2, 4), deployment=Deployment(ranks=(0, 1, 4, 5)))
    assert plan.placement.ranks == 4


def test_a_plan_is_scored_with_attention_shared_as_it_will_run(trace: Trace, cluster: Cluster) -> None:
    deployment = Deployment(attention_tp=2)
    alone, shared = (plan_of(trace, cluster, solver="lpt", deployment=each) for each in (None, deployment))
    again = simulate(trace, cluster, shared, tokens_per_rank=64, deployment=deployment)
    assert shared.score_s == pytest.approx(again.mean_step_s, rel=1e-12)
    assert shared.bound_s > alone.bound_s  # two NCCL collectives a layer
    with pytest.raises(InputError, match="the costs are for attention_tp 1, the deployment has 2"):
        plan_of(trace, cluster, solver="lpt", deployment=deployment, costs=Costs.default(trace.spec, cluster))


def test_inputs_tell_what_a_plan_has_seen(trace: Trace, cluster: Cluster) -> None:
    fit, _ = trace.split(0.5)
    inputs = plan_of(fit, cluster, solver="lpt").inputs
    assert inputs["trace"] == fit.digest
    assert set(inputs["requests"]) <= set(np.unique(fit.request).tolist())
    assert inputs["cluster_digest"] == cluster.digest


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_impossible_placements_cannot_get_out(
    data: st.DataObject, trace: Trace, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = SOLVERS.get("contiguous")
    damage = data.draw(st.sampled_from(["lost", "twice", "range", "shape", "dtype", "negative", "nothing"]))
    layer, rank = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 3))

    def bad(problem: Problem) -> Any:
        experts = valid(problem).astype(np.int64)
        slots = experts[layer]
        if damage == "lost":
            slots[slots == data.draw(st.integers(0, 7))] = -1
        elif damage == "twice":
            slots[rank, 0] = slots[rank, 1]
        elif damage in ("range", "negative"):
            slots[rank, 0] = data.draw(st.integers(8, 2**40) if damage == "range" else st.integers(-(2**40), -2))
        elif damage == "shape":
            return experts[data.draw(st.sampled_from([np.s_[:1], np.s_[:, :3], np.s_[:, :, :2], np.s_[0]]))]
        elif damage == "dtype":
            return experts.astype(float)
        else:
            return None
        return experts

    monkeypatch.setitem(SOLVERS._builtin, "bad", "nowhere:bad")
    monkeypatch.setitem(SOLVERS._loaded, "bad", bad)
    with pytest.raises(InputError, match="solver 'bad' returned"):
        plan_of(trace, cluster, solver="bad")
