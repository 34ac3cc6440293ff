"""What-if scenarios move the way physics says, say what they assume, and refuse what cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.base.errors import InputError
from moesim.cluster import Cluster
from moesim.placement import Placement
from moesim.solve import solve
from moesim.spec import ModelSpec
from moesim.study.judge import adopt, judge
from moesim.study.spread import by_domain
from moesim.study.whatif import Scenario, changed, lost_experts, mixed_domains, price
from moesim.study.windows import costs_of, steps_of
from moesim.trace import Trace

SPEC = ModelSpec("tiny", (0, 1), 2, experts=32, top_k=2, hidden=4096, intermediate=2048)
CLUSTER = Cluster.preset("h100-4x8-rail")


def make_trace(tokens: int = 4096, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    request = np.arange(tokens) // 16
    domain = request % 2
    popularity = rng.normal(size=(2, SPEC.layers, SPEC.experts))[domain]
    noise = rng.gumbel(size=(tokens, SPEC.layers, SPEC.experts))
    routes = np.argsort(-(popularity + noise), axis=2)[:, :, :2].astype(np.int16)
    return Trace(SPEC, routes=routes, request=request, domain=domain, domains=("law", "code"))


TRACE = make_trace()


def step_s(scenario: Scenario, **more: Any) -> float:
    return price(TRACE, CLUSTER, scenario, **more).report.mean_step_s


def test_nothing_changed_is_the_simulation_of_the_plan():
    batches = steps_of(TRACE, CLUSTER, tokens_per_rank=32)
    costs = costs_of(batches, CLUSTER)
    plan = solve(batches, CLUSTER, slots_per_rank=2, solver="eplb", costs=costs)
    found = price(TRACE, CLUSTER, Scenario(2, tokens_per_rank=32), placement=plan.placement, max_steps=None)
    assert found.kept
    assert found.report.mean_step_s == judge(plan, batches, batches, CLUSTER, costs).row.step_s


def test_the_event_engine_gives_the_same_numbers():
    scenario = Scenario(2, tokens_per_rank=32)
    assert step_s(scenario, engine="events") == pytest.approx(step_s(scenario), rel=1e-12)


@pytest.mark.parametrize("knob", ["between_nodes", "inside_nodes"])
def test_more_bandwidth_is_never_slower_and_less_is_slower(knob: str):
    times = [step_s(Scenario(2, tokens_per_rank=128, **{knob: factor})) for factor in (0.25, 1.0, 4.0)]
    assert times[0] > times[1] >= times[2]


def test_more_tokens_take_longer():
    assert step_s(Scenario(2, tokens_per_rank=64)) > step_s(Scenario(2, tokens_per_rank=16))


def test_nodes_ranks_and_slots_are_those_asked_for():
    found = price(TRACE, CLUSTER, Scenario(3, nodes=8, ranks=48, tokens_per_rank=8))
    assert (found.cluster.nodes, found.cluster.ranks) == (6, 48)
    assert found.placement.experts.shape == (2, 48, 3)
    assert any("placed anew" in note for note in found.notes)


def test_a_failed_gpu_is_gone_and_the_experts_it_alone_held_are_lost():
    plan = Placement(np.arange(32, dtype=np.int32).reshape(1, 32, 1).repeat(2, 0), 32)
    scenario = Scenario(2, without=("node1.gpu3",), tokens_per_rank=8)
    found = price(TRACE, CLUSTER, scenario, placement=plan)
    assert found.cluster.ranks == 31
    assert not found.kept
    assert found.lost is not None
    assert found.lost.tolist() == [1, 1]
    assert lost_experts(plan, CLUSTER, ("node1",)).tolist() == [8, 8]
    assert lost_experts(plan, CLUSTER, ("node1.nic0",)).tolist() == [0, 0]
    # ranks of a deployment are not the first GPUs of the cluster
    far = CLUSTER.restrict([*range(16, 32), *range(16)])
    assert lost_experts(plan, far, ("node3",)).tolist() == lost_experts(plan, CLUSTER, ("node1",)).tolist()
    assert lost_experts(plan, far, ("node0",)).tolist() == lost_experts(plan, CLUSTER, ("node2",)).tolist()


def test_impossible_scenarios_say_what_to_do():
    with pytest.raises(InputError, match="at least 2 slots"):
        price(TRACE, CLUSTER, Scenario(1, ranks=16))
    with pytest.raises(InputError, match="node9"):
        changed(CLUSTER, Scenario(2, without=("node9",)))


def test_a_domain_mix_keeps_whole_requests_and_reaches_the_shares():
    mixed = mixed_domains(TRACE, {"law": 1.0, "code": 0.25})
    share = np.bincount(mixed.domain) / mixed.rows
    assert share[1] == pytest.approx(0.2, abs=0.06)
    lengths = np.unique(mixed.request, return_counts=True)[1]
    assert set(lengths.tolist()) == {16}
    assert mixed_domains(TRACE, {"law": 0.0}).rows == TRACE.rows // 2
    assert mixed_domains(TRACE, {"law": 1.0}) is TRACE
    with pytest.raises(InputError, match="no domain 'chess'"):
        mixed_domains(TRACE, {"chess": 2.0})
    with pytest.raises(InputError, match="zero"):
        mixed_domains(TRACE, {"law": 0, "code": 0})


def test_the_spread_over_domains_judges_each_alone_in_steps_of_one_size():
    batches = steps_of(TRACE, CLUSTER, tokens_per_rank=32)
    costs = costs_of(batches, CLUSTER)
    plan = solve(batches, CLUSTER, slots_per_rank=2, solver="eplb", costs=costs)
    found = by_domain(plan, batches, CLUSTER, costs)
    assert [one.domain for one in found] == ["law", "code"]
    assert len({one.tokens_per_rank for one in found}) == 1
    only = TRACE.select(TRACE.domain == 1)
    steps = steps_of(only, CLUSTER, tokens_per_rank=found[1].tokens_per_rank, max_steps=4)
    assert judge(plan, steps, steps, CLUSTER, costs).row.step_s == pytest.approx(found[1].step_s, rel=1e-12)
    with pytest.raises(InputError, match="0 domains with 5,000 tokens"):
        by_domain(plan, batches, CLUSTER, costs, least_tokens=5000)
    unlabelled = Trace(SPEC, routes=TRACE.routes, request=TRACE.request)
    with pytest.raises(InputError, match="1 domain"):
        by_domain(plan, steps_of(unlabelled, CLUSTER, tokens_per_rank=32), CLUSTER, costs)


def test_an_adopted_placement_scores_as_the_solver_that_made_it():
    batches = steps_of(TRACE, CLUSTER, tokens_per_rank=32)
    costs = costs_of(batches, CLUSTER)
    plan = solve(batches, CLUSTER, slots_per_rank=2, solver="eplb", costs=costs)
    adopted = adopt(plan.placement, batches, CLUSTER, costs, name="running.json")
    assert (adopted.score_s, adopted.bound_s) == pytest.approx((plan.score_s, plan.bound_s), rel=1e-12)
    assert adopted.solver == "running.json"
    with pytest.raises(InputError):
        adopt(Placement([[[0, 1], [2, 3]]], 4), batches, CLUSTER, costs)
