"""compare(): fitted on one part of the traffic, judged on another, every solver on the same steps."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

import moesim
from moesim.base.errors import Infeasible, InputError, UnknownName
from moesim.cluster import Cluster, Deployment
from moesim.report import html
from moesim.simulate import simulate
from moesim.spec import ModelSpec
from moesim.study import PARTS, Comparison, compare, costs_of, fewest_slots, part_of, steps_of, steps_of_parts
from moesim.trace import Trace
from moesim.trace.synthetic import router

SPEC = ModelSpec(
    name="little", layer_ids=(1, 2), num_hidden_layers=3, experts=12, top_k=2, hidden=1024, intermediate=512,
    groups=2, group_limit=2,
)  # fmt: skip
CLUSTER = Cluster.preset("h100-4x8-rail")
TWO_NODES = Deployment(ranks=(0, 1, 2, 8, 9, 10))
HOW = {"slots_per_rank": 3, "deployment": TWO_NODES, "tokens_per_rank": 64, "deadline_s": 2.0, "seed": 3}
SOLVERS = ("contiguous", "eplb", "eplb-hierarchical", "moesim")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return router(SPEC, 6000, seed=2, request_tokens=40)


@pytest.fixture(scope="module")
def found(trace: Trace) -> Comparison:
    return compare(trace, CLUSTER, solvers=SOLVERS, **HOW)


def test_the_public_name_is_this_one():
    assert moesim.compare is compare


def test_fit_and_held_out_share_no_request(found: Comparison, trace: Trace):
    fitted, judged = (set(np.unique(part.trace.request[part.token]).tolist()) for part in (found.fitted, found.judged))
    assert fitted
    assert judged
    assert not fitted & judged
    assert not any(report.seen.any() for report in found.reports.values())


def test_every_solver_is_judged_on_the_same_steps(found: Comparison):
    batches = {report.facts["digests"]["batches"] for report in found.reports.values()}
    assert batches == {found.judged.digest}
    assert [row.solver for row in found.rows] == list(SOLVERS)


def test_no_plan_beats_the_bound_and_the_best_is_the_fastest(found: Comparison):
    assert all(row.step_s >= found.bound_s > 0 for row in found.rows)
    assert found.best.step_s == min(row.step_s for row in found.rows)


def test_ours_is_never_worse_than_a_baseline_on_what_it_was_fitted_to(found: Comparison):
    fitted = {row.solver: row.fit_step_s for row in found.rows}
    assert fitted["moesim"] <= min(fitted.values()) * (1 + 1e-9)


def test_rows_are_what_simulate_says_of_the_plans(found: Comparison):
    for row in found.rows:
        plan = found.plans[row.solver]
        report = simulate(found.judged, found.cluster, plan, costs=found.costs)
        assert report.mean_step_s == row.step_s
        assert simulate(found.fitted, found.cluster, plan, costs=found.costs).mean_step_s == row.fit_step_s
        assert row.fit_step_s == pytest.approx(plan.score_s, rel=1e-9)


def test_attention_is_shared_as_the_deployment_says(trace: Trace):
    deployment = dataclasses.replace(TWO_NODES, attention_tp=3)
    found = compare(trace, CLUSTER, solvers=("lpt",), **HOW | {"deployment": deployment})
    assert found.costs.attention_tp == 3
    plan = found.plans["lpt"]
    assert simulate(found.judged, CLUSTER, plan, deployment=deployment).mean_step_s == found.rows[0].step_s


def test_no_plan_is_faster_than_one_that_had_seen_the_held_out_steps():
    spec = dataclasses.replace(SPEC, experts=16, hidden=2048, intermediate=1024, groups=1, group_limit=1)
    # renumbering its ranks makes the plan for the held-out steps slower here than the one that it began with
    traffic = router(spec, 6000, seed=20, request_tokens=40)
    how = HOW | {"slots_per_rank": 3, "tokens_per_rank": 128, "seed": 20}
    found = compare(traffic, CLUSTER, solvers=("lpt", "moesim"), regret=True, **how)
    assert all(row.regret is not None and row.regret >= 0 for row in found.rows)


def test_the_same_comparison_gives_the_same_numbers(trace: Trace):
    one, two = (compare(trace, CLUSTER, solvers=("lpt", "eplb"), **HOW).to_dict() for _ in range(2))
    for row in (*one["rows"], *two["rows"]):
        row.pop("solve_s")  # the only figure that is a clock's
    assert one == two


def test_a_solver_that_cannot_run_here_keeps_its_reason(trace: Trace):
    three = Deployment(ranks=(0, 1, 8, 9, 16, 17))
    found = compare(trace, CLUSTER, solvers=("contiguous", "eplb-hierarchical"), **HOW | {"deployment": three})
    assert [row.solver for row in found.rows] == ["contiguous"]
    assert "divide" in found.not_run["eplb-hierarchical"]
    assert found.to_dict()["not_run"][0]["solver"] == "eplb-hierarchical"
    assert "cannot run here" in html(found)
    with pytest.raises(InputError, match="divide"):
        compare(trace, CLUSTER, solvers=("eplb-hierarchical",), **HOW | {"deployment": three})


def test_what_cannot_be_compared_is_refused(trace: Trace):
    with pytest.raises(UnknownName, match="did you mean 'snake'"):
        compare(trace, CLUSTER, solvers=("snaek",), **HOW)
    with pytest.raises(InputError, match="no solver"):
        compare(trace, CLUSTER, solvers=(), **HOW)
    with pytest.raises(Infeasible, match="slots"):
        compare(trace, CLUSTER, solvers=("lpt",), **HOW | {"slots_per_rank": 1})
    other = router(dataclasses.replace(SPEC, experts=16), 2000, seed=2)
    with pytest.raises(InputError, match="different models"):
        compare(trace, CLUSTER, held_out=other, solvers=("lpt",), **HOW)


def test_notes_say_what_a_reader_must_know(found: Comparison, trace: Trace):
    assert any("dealt" in note for note in found.notes)
    short = trace.select(trace.request < 4)
    notes = compare(short, CLUSTER, solvers=("lpt",), **HOW).notes
    assert any("resampled" in note for note in notes)


def test_steps_of_a_trace_of_several_phases_are_of_the_first():
    mixed = router(SPEC, 4000, seed=1, decode=0.5, request_tokens=40)
    group = TWO_NODES.restrict(CLUSTER)
    assert set(steps_of(mixed, group, tokens_per_rank=32).phase) == {0}
    assert set(steps_of(mixed, group, tokens_per_rank=32, phase="decode").phase) == {1}


def test_the_transport_follows_the_phase_unless_it_is_named(trace: Trace):
    mixed = router(SPEC, 4000, seed=1, decode=0.5, request_tokens=40)
    group = TWO_NODES.restrict(CLUSTER)
    prefill, decode = (steps_of(mixed, group, tokens_per_rank=32, phase=phase) for phase in ("prefill", "decode"))
    assert costs_of(prefill, group).transport == "hierarchical"
    assert costs_of(decode, group).transport == "direct"
    assert costs_of(decode, group, transport="rank-dedup").transport == "rank-dedup"


def test_parts_are_disjoint_and_whole(trace: Trace):
    fit, held_out = (part_of(trace, part, fit=0.3, seed=5) for part in ("fit", "held-out"))
    assert fit.tokens + held_out.tokens == part_of(trace, "all").tokens == trace.tokens
    assert not set(fit.request.tolist()) & set(held_out.request.tolist())
    with pytest.raises(UnknownName, match="did you mean 'held-out'"):
        part_of(trace, "heldout")
    assert PARTS == ("all", "fit", "held-out")


@pytest.mark.parametrize(("experts", "ranks", "slots"), [(64, 32, 2), (12, 6, 2), (13, 6, 3), (4, 8, 1)])
def test_fewest_slots_hold_every_expert(experts: int, ranks: int, slots: int):
    assert fewest_slots(experts, ranks) == slots


def test_on_paper_no_figure_is_cut_and_no_heading_is_left_behind(found: Comparison):
    (rules,) = [line for line in html(found).splitlines() if line.startswith("@media print")]
    # the classes are those of the page
    assert ".plotly-graph-div" in rules
    assert 'class="plotly-graph-div"' in html(found)
    assert '</h3>\n<p class="quiet">' in html(found)
    assert "h3 + .quiet" in rules


def test_the_report_is_the_same_text_every_time_and_holds_the_table(found: Comparison):
    page = html(found, commands=["moesim compare x"])
    assert page == html(found, commands=["moesim compare x"])
    _, _, body = page.partition("</script>\n</head>")
    assert "moesim compare x" in body
    for row in found.rows:
        assert re.search(rf"<tr[^>]*><td>{row.solver}</td>", body)
    assert body.count('class="best"') == 1
    for name in found.costs.sources:
        assert name.split(":")[0] in body
    dark = html(found, dark=True)
    assert "color-scheme: dark" in dark


def test_requests_on_both_sides_of_a_cut_in_time_are_told():
    whole = router(SPEC, 4000, seed=2, request_tokens=40)
    # two requests run side by side in every step, and the cut goes through some
    recorded = dataclasses.replace(whole, step=(np.arange(4000) // 80 * 40 + whole.position % 40) // 7)
    how = HOW | {"tokens_per_rank": 16}
    found = compare(recorded, CLUSTER, solvers=("contiguous",), **how)
    assert any(re.match(r"cut in time: [1-9]\d* of \d+ held-out requests had begun", note) for note in found.notes)


def test_fit_and_held_out_steps_are_of_one_phase():
    whole = router(SPEC, 4000, seed=2, request_tokens=40)
    step = np.arange(4000) // 200
    late = dataclasses.replace(whole, step=step, phase=np.where(step < 6, 0, 1).astype(np.uint8))
    group = TWO_NODES.restrict(CLUSTER)
    fit, held_out = (part_of(late, part) for part in ("fit", "held-out"))
    # prompts ran first: the part that judges holds answers only, so plans must be fitted on answers too
    fitted, judged = steps_of_parts(fit, held_out, group, tokens_per_rank=16)
    assert set(fitted.phase) == set(judged.phase) == {1}
    halves = dataclasses.replace(late, phase=np.where(step < 10, 0, 1).astype(np.uint8))
    with pytest.raises(InputError, match=r"fitted on prefill and judged on decode.*cut the trace elsewhere"):
        compare(halves, CLUSTER, **HOW)
