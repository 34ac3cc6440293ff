"""A trace of some MoE layers of a model: what is said of the whole model is of the whole model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moesim.base.errors import InputError
from moesim.cluster import Cluster, Deployment
from moesim.costs import Costs
from moesim.placement import Placement
from moesim.placement.launch import engine_formats, launch
from moesim.simulate import simulate
from moesim.simulate.serving import poisson
from moesim.solve import Plan, solve
from moesim.solve.moving import break_even_s
from moesim.solve.objective import score
from moesim.spec import Attention, ModelSpec
from moesim.study import compare
from moesim.study.advise import advise
from moesim.study.recovery import recover
from moesim.study.serving import Serving, serve_plan
from moesim.trace import Batches, Trace, make_batches
from moesim.trace.synthetic import router

SPEC = ModelSpec(
    name="deep", layer_ids=tuple(range(1, 13)), num_hidden_layers=13, experts=12, top_k=2, hidden=4096,
    intermediate=2048, dense_intermediate=8192, vocab=32_000, attention=Attention(heads=32, kv_heads=8, head_dim=128),
)  # fmt: skip
GROUP = Deployment(ranks=(0, 1, 2, 8, 9, 10)).restrict(Cluster.preset("h100-8x8-rail"))
HOW = {"slots_per_rank": 3, "tokens_per_rank": 64}


@pytest.fixture(scope="module")
def whole() -> Trace:
    """Twelve layers, all of which route alike."""
    one = router(SPEC.only([0]), 6000, seed=1, request_tokens=40)
    assert one.routes is not None
    return Trace(SPEC, routes=np.repeat(one.routes, 12, axis=1), request=one.request, position=one.position)


@pytest.fixture(scope="module")
def part(whole: Trace) -> Trace:
    return whole.of_layers([0, 4, 8])


def outside_s(steps: Batches) -> float:
    """Seconds of a step outside the MoE layers, as a simulation has them."""
    anywhere = solve(steps, GROUP, solver="contiguous", slots_per_rank=3).placement
    report = simulate(steps, GROUP, anywhere)
    found = score(steps, anywhere, Costs.default(steps.trace.spec, GROUP))
    assert found.model_step_s == pytest.approx(report.model_step_s)
    np.testing.assert_array_equal(found.outside_s, report.outside_s)
    assert found.outside_s.min() > 0
    return float(found.outside_s.mean())


def test_the_step_of_the_whole_model_counts_layers_that_were_left_out(whole: Trace, part: Trace) -> None:
    plan = solve(part, GROUP, solver="eplb", **HOW)
    placement = Placement(np.repeat(plan.placement.experts[:1], 12, axis=0), 12)
    some = simulate(part, GROUP, plan, tokens_per_rank=64)
    every = simulate(whole, GROUP, placement, policy=plan.policy, transport=plan.transport, tokens_per_rank=64)
    assert some.stands_for == 4
    assert every.stands_for == 1
    assert some.mean_step_s < every.mean_step_s / 3
    assert some.model_step_s == pytest.approx(every.model_step_s, rel=0.03)
    assert some.tokens_per_s_per_gpu == pytest.approx(every.tokens_per_s_per_gpu, rel=0.03)
    (note,) = [note for note in some.notes if "MoE layers" in note]
    assert note.startswith("the trace holds 3 of the 12 MoE layers of deep: ")
    assert note in plan.notes
    assert not any("MoE layers" in note for note in every.notes)
    assert not Costs.default(SPEC, GROUP).partial_note


def test_a_move_has_paid_off_when_the_whole_model_has_saved_what_it_took(part: Trace) -> None:
    running = solve(part, GROUP, solver="contiguous", **HOW).placement
    found = compare(part, GROUP, solvers=("eplb",), previous=running, **HOW)
    (row, stay) = found.rows
    assert row.move_s is not None
    model_s = 4 * row.step_s + outside_s(found.judged)
    assert row.break_even_s == pytest.approx(break_even_s(row.move_s, stay.step_s, row.step_s, model_s))
    plan = solve(part, GROUP, solver="eplb", previous=running, **HOW)
    terms = plan.terms["migration"]
    model_s = 4 * plan.score_s + outside_s(make_batches(part, GROUP.ranks, tokens_per_rank=64))
    assert terms["break_even_s"] == pytest.approx(
        break_even_s(terms["move_s"], terms["stay_step_s"], plan.score_s, model_s)
    )
    # a horizon between what the recorded layers alone would take and what the model takes: nothing moves
    soon = solve(part, GROUP, solver="eplb", previous=running, horizon_s=terms["break_even_s"] / 3, **HOW)
    assert soon.terms["migration"]["moves"] == 0


def test_all_layers_are_served(whole: Trace, part: Trace) -> None:
    def mean_tpot_s(trace: Trace) -> tuple[float, tuple[str, ...]]:
        placement = Placement(np.tile(np.arange(18).reshape(1, 6, 3) % 12, (trace.layers, 1, 1)), 12)
        costs = Costs.default(trace.spec, GROUP, transport="direct")
        serving = Serving(GROUP, placement, "nearest", costs, tokens=256, requests=8, kv_tokens=10_000)
        report = serve_plan(trace, poisson(20, 20, prompt=64, output=16), serving)
        return float(report.tpot_s.mean()), report.notes

    some, notes = mean_tpot_s(part)
    assert some == pytest.approx(mean_tpot_s(whole)[0], rel=0.05)
    assert "3 recorded layers in place of the 12 MoE layers of deep" in notes
    assert not any(note.startswith("the trace holds") for note in notes)


def test_the_whole_of_a_part_has_a_place_for_every_layer() -> None:
    for layers in ([0], [3, 11], list(range(12))):
        found = SPEC.only(layers).whole()
        assert (found.layers, found.left_out, found.dense_layers) == (12, 0, 1)
        assert set(SPEC.only(layers).layer_ids) <= set(found.layer_ids)


def test_no_engine_is_given_a_part_of_a_map(part: Trace, tmp_path) -> None:
    plan = solve(part, GROUP, solver="eplb", **HOW)
    plan.write(tmp_path / "plan.json")
    again = Plan.read(tmp_path / "plan.json").placement
    assert again.left_out == 9
    plan.placement.write(tmp_path / "placement.json")
    assert Placement.read(tmp_path / "placement.json").left_out == 9
    for format in engine_formats():
        with pytest.raises(InputError, match="'layer numbers': the plan holds 3 of the 12 MoE layers"):
            launch(again, str(tmp_path / "map.json"), format)
        with pytest.raises(InputError, match="holds 3 of the 12 MoE layers of the model, and "):
            again.write(tmp_path / "map.json", format=format)
        assert not (tmp_path / "map.json").exists()


def test_what_runs_is_said_to_have_seen_the_held_out_steps(part: Trace) -> None:
    running = solve(part, GROUP, solver="eplb", **HOW)
    given = {"previous": running.placement, "previous_inputs": running.inputs, **HOW}
    found = compare(part, GROUP, solvers=("eplb",), **given)
    steps = len(found.judged)
    assert f"tokens that stay was fitted on are in {steps} of {steps} held-out steps" in found.notes
    assert not any("not known" in note for note in found.notes)
    advice = advise(part, GROUP, deadline_s=0.5, max_steps=2, **given)
    assert "what runs was fitted on tokens of 2 of 2 held-out steps" in advice.notes
    assert not any("does not say what it was fitted on" in note for note in advice.notes)
    bare = compare(part, GROUP, solvers=("eplb",), **(given | {"previous_inputs": None}))
    assert any("what it was fitted to is not known" in note for note in bare.notes)


def test_little_moves_are_answered_with_what_they_rest_on(part: Trace) -> None:
    domain = (part.request % 2).astype(np.int16)
    mixed = dataclasses.replace(part, domain=domain, domains=("old", "new"))
    found = recover(mixed, GROUP, share=0.5, budgets=(2,), deadline_s=1.0, **HOW)
    stay, *moved = found.rows
    assert moved
    # what is outside the MoE layers takes as long whatever moves
    beside = [row.break_even_s * (stay.step_s - row.step_s) / row.move_s - 4 * row.step_s for row in moved]
    assert min(beside) > 0
    assert beside == pytest.approx([beside[0]] * len(beside))
    notes = found.facts["notes"]
    assert any(note.startswith("the trace holds 3 of the 12") for note in notes)
    assert any(note.startswith("expert compute by roofline") for note in notes)
    # a second buys a part of the search, and a reader of one budget beside another must know
    for plan in ("plan before", "plan with 2 moves a layer", "plan with any number of moves"):
        assert any(note.startswith(f"{plan}: the deadline bought ") for note in notes)
