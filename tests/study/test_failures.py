"""Failures while serving: plans that survive them, what is out of reach, and how it recovers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from moesim.base.errors import Infeasible, InputError
from moesim.cluster import Cluster
from moesim.simulate.serving import poisson
from moesim.solve import Plan, solve
from moesim.solve.constraints import Constraints
from moesim.solve.memory import RESERVED_MEMORY, other_weights
from moesim.spec import Attention, ModelSpec
from moesim.study.failures import Recovery, fail, throughput, what_is_left
from moesim.study.serving import Serving, cache_tokens, kv_path, served_model
from moesim.study.windows import costs_of, part_of, steps_of
from moesim.trace.synthetic import router

SPEC = ModelSpec(
    name="fails", layer_ids=(0, 1, 2), num_hidden_layers=3, experts=16, top_k=3, hidden=2048, intermediate=1024,
    attention=Attention(heads=16, kv_heads=4, head_dim=128), vocab=32_000,
)  # fmt: skip
DEEP = dataclasses.replace(SPEC, name="deep", layer_ids=tuple(range(60)), num_hidden_layers=60)
GROUP = Cluster.preset("h100-4x8-rail").restrict([0, 1, 2, 3, 8, 9, 10, 11])


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    trace = router(SPEC, 8000, skew=1.0, seed=1, request_tokens=50)
    fitted = steps_of(part_of(trace, "fit"), GROUP, tokens_per_rank=32, max_steps=4)
    costs = costs_of(fitted, GROUP, transport="direct")
    how: dict[str, Any] = {"slots_per_rank": 5, "solver": "eplb", "costs": costs, "transport": "direct"}
    survive = Constraints(hot=SPEC.experts, hot_nodes=2)
    return {
        "trace": trace, "fitted": fitted, "costs": costs,
        "eplb": solve(fitted, GROUP, **how), "n-1": solve(fitted, GROUP, constraints=survive, **how),
    }  # fmt: skip


def after(world: dict[str, Any], plan: Plan, what: str, **how: Any) -> Any:
    serving = Serving(GROUP, plan.placement, "nearest", world["costs"], kv_tokens=100_000)
    arrivals = poisson(400, 2000, prompt=64, output=32, seed=2)
    recovery = Recovery(restart_s=0.5, plan_s=0.5)
    return fail(world["trace"], arrivals, serving, world["fitted"], what, 2.0, recovery=recovery, **how)


def lost(plan: Plan, what: str) -> int:
    _, alive = what_is_left(GROUP, what)
    left = plan.placement.has[:, :, alive].any(axis=2)
    return int((~left).sum())


@pytest.mark.parametrize("kind", ["gpu", "node"])
def test_a_plan_for_survival_keeps_every_expert_within_reach_where_eplb_loses_some(world: dict[str, Any], kind: str):
    names = GROUP.rank_names if kind == "gpu" else ("node0", "node1")
    assert [lost(world["n-1"], name) for name in names] == [0] * len(names)
    assert max(lost(world["eplb"], name) for name in names) > 0


def test_a_lost_node_stops_serving_until_its_experts_are_read(world: dict[str, Any]):
    eplb, survived = after(world, world["eplb"], "node1"), after(world, world["n-1"], "node1")
    assert eplb.experts == lost(world["eplb"], "node1") > 0 == survived.experts
    assert 0 < eplb.picks < 1
    assert survived.outage_s == 0.5 < eplb.outage_s
    for found in (eplb, survived):
        assert found.report.finished.all()
        assert found.report.recomputed.sum() > 0
        ends = found.report.steps["all"]["end_s"]
        assert not ((ends > 2.0 + 0.2) & (ends < 2.0 + found.outage_s)).any()
        assert found.report.busy_s["all"][4:].sum() < found.report.busy_s["all"][:4].sum()


@pytest.mark.parametrize("deep", [False, True])
def test_a_new_plan_moves_with_the_staging_that_memory_leaves(world: dict[str, Any], deep: bool):
    model = served_model(world["trace"], DEEP if deep else None)[0]
    plan, least = world["eplb"], model.layers * 5 * model.expert_bytes + other_weights(model)
    moves = {}
    for room in (1.5, 1000.0):
        memory = (least + room * model.expert_bytes) / (1 - RESERVED_MEMORY)
        cluster = dataclasses.replace(GROUP, memory_bytes=np.full(GROUP.ranks, memory))
        costs = costs_of(world["fitted"], cluster, dims=DEEP if deep else None, transport="direct")
        serving = Serving(cluster, plan.placement, "nearest", costs, kv_tokens=100_000)
        found = fail(
            world["trace"], poisson(400, 200, prompt=64, output=32), serving, world["fitted"], "node1", 0.1,
            recovery=Recovery(0.1, 0.1), dims=DEEP if deep else None,
        )  # fmt: skip
        moves[room] = found.move_s
    # one expert at a time takes more rounds than all that a layer receives at once
    assert moves[1.5] > 1.2 * moves[1000.0] > 0


def test_what_is_slow_slows_and_nothing_is_lost(world: dict[str, Any]):
    whole = after(world, world["eplb"], "node0.gpu0=1.0")
    slow = after(world, world["eplb"], "node0.gpu0=0.2")
    assert (slow.experts, slow.outage_s, slow.report.recomputed.sum()) == (0, 0.0, 0)
    assert slow.report.tpot_s.mean() > 1.05 * whole.report.tpot_s.mean()


def test_a_gpu_without_its_nic_goes_on_through_others():
    left, alive = what_is_left(Cluster.preset("h100-4x8-rail"), "node1.nic3")
    assert len(alive) == left.ranks == 32
    narrow, _ = what_is_left(Cluster.preset("h100-4x8-rail"), "node1.nic3=0.5")
    assert np.asarray(narrow.link_bandwidth).min() < np.asarray(left.link_bandwidth).min()


def test_throughput_counts_every_generated_token(world: dict[str, Any]):
    found = after(world, world["eplb"], "node0.gpu1")
    assert throughput(found.report)[1].sum() == found.report.generated.sum() - _first_after_loss(found.report)


def _first_after_loss(report: Any) -> int:
    """Tokens that came of prompts computed again: neither a decode step nor a first token."""
    steps = np.concatenate(list(report.steps.values()))
    return int(report.generated.sum() - steps["decode"].sum() - np.isfinite(report.first_s).sum())


@pytest.mark.parametrize("what", ["node9", "node0.gpu9", "rack1", "node0.gpu0=fast"])
def test_a_part_that_is_not_there_is_named(what: str):
    with pytest.raises(InputError, match=what.split("=", maxsplit=1)[0]):
        what_is_left(GROUP, what)


def test_nothing_fails_before_the_beginning(world: dict[str, Any]):
    serving = Serving(GROUP, world["eplb"].placement, "nearest", world["costs"], kv_tokens=100_000)
    with pytest.raises(InputError, match="not be negative"):
        fail(world["trace"], poisson(1, 1), serving, world["fitted"], "node1", -1.0)


def test_too_few_slots_for_what_is_left_are_infeasible(world: dict[str, Any]):
    plan = solve(
        world["fitted"], GROUP, slots_per_rank=2, solver="contiguous", costs=world["costs"], transport="direct"
    )
    with pytest.raises(Infeasible, match="cannot hold all experts"):
        after(world, plan, "node1")


def test_the_cache_is_what_the_weights_leave():
    model = ModelSpec.preset("deepseek-v3")
    wide, narrow = (cache_tokens(model, Cluster.preset("h100-8x8-rail"), slots, 0.9) for slots in (4, 6))
    per_slot = model.layers * model.expert_bytes / (576 * 2 * 61)
    assert wide - narrow == pytest.approx(2 * per_slot, rel=1e-3)
    with pytest.raises(Infeasible, match="leave no room"):
        cache_tokens(model, Cluster.preset("h100-8x8-rail"), 40, 0.9)


def test_recorded_layers_stand_for_those_of_the_model(world: dict[str, Any]):
    model, notes = served_model(world["trace"], ModelSpec.preset("deepseek-v3"))
    assert (model.layers, model.num_hidden_layers, model.experts, model.hidden) == (58, 61, 16, 7168)
    assert "in place of the 58 MoE layers" in notes[0]


def test_a_cache_travels_over_the_worst_path_between_the_pools():
    latency_s, bandwidth = kv_path(Cluster.preset("h100-4x8-rail"), 16)
    assert 40e9 < bandwidth < 50e9
    assert 1e-6 < latency_s < 1e-5


def test_parts_of_a_deployment_go_by_their_names_in_the_cluster():
    far = Cluster.preset("h100-4x8-rail").restrict([8, 9, 10, 24, 25, 26])
    assert what_is_left(far, "node3.gpu1")[1].tolist() == [0, 1, 2, 3, 5]
    assert what_is_left(far, "node3")[1].tolist() == [0, 1, 2]
    assert what_is_left(far, "node3.gpu0=0.5")[0].speed.tolist() == [1, 1, 1, 0.5, 1, 1]
    for name in ("node0", "node0.gpu0", "node1.gpu7=0.5", "node"):
        with pytest.raises(InputError, match=r"its GPUs are node1\.gpu0 to node3\.gpu2"):
            what_is_left(far, name)


@pytest.mark.parametrize("part", ["half", "0", "-1", "nan", "2"])
def test_what_remains_of_a_slow_gpu_is_above_nothing_and_at_most_all(part: str):
    with pytest.raises(InputError, match="above 0 and up to 1"):
        what_is_left(GROUP, f"node0.gpu0={part}")
