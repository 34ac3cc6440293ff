"""The advice: what pays is said to pay, what does not is not, and every number is one of held-out steps."""

from __future__ import annotations

import dataclasses
import json

import pytest

from moesim.cluster import Cluster, Deployment
from moesim.placement import Placement
from moesim.solve import solve
from moesim.solve.objective import score
from moesim.spec import ModelSpec
from moesim.study.advise import FEW_MOVES, SLOW_STEPS, Advice, advise
from moesim.study.answers import Option, answers
from moesim.study.budget import Budget
from moesim.study.windows import costs_of, part_of, steps_of
from moesim.trace import Trace
from moesim.trace.synthetic import router

SPEC = ModelSpec(
    name="little", layer_ids=(0, 1), num_hidden_layers=2, experts=12, top_k=2, hidden=4096, intermediate=2048,
)  # fmt: skip
GROUP = Deployment(ranks=(0, 1, 2, 8, 9, 10)).restrict(Cluster.preset("h100-8x8-rail"))
HOW = {"slots_per_rank": 3, "tokens_per_rank": 64, "deadline_s": 0.5}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return router(SPEC, 6000, seed=1, request_tokens=40)


@pytest.fixture(scope="module")
def found(trace: Trace) -> Advice:
    return advise(trace, GROUP, **HOW)


def test_the_numbers_are_those_of_held_out_steps(found: Advice, trace: Trace) -> None:
    judged = steps_of(part_of(trace, "held-out"), GROUP, tokens_per_rank=64, max_steps=6)
    costs = costs_of(judged, GROUP)
    again = score(judged, found.plan.placement, costs).mean_s
    assert found.advised is None  # so that the re-plan is handed out
    written = next(option for option in found.options if option.name == "re-plan")
    assert written.step_s == pytest.approx(again)
    assert written.gain == pytest.approx(1 - again / found.now["step_s"])
    assert found.now["bound_s"] <= min(option.step_s for option in found.options if option.slots_per_rank == 3)
    assert {option.kind for option in found.options} == {"placement", "slots", "policy"}
    assert found.regret >= 0


def test_what_pays_saves_more_than_its_error_and_in_time(found: Advice) -> None:
    for option in found.options:
        if option.pays:
            assert option.gain > max(0.01, 2 * (option.gain_error or 0))
            assert option.move_s is None or (option.break_even_s is not None and option.break_even_s <= 600)
    few = next(option for option in found.options if "moves a layer" in option.name)
    assert few.moves is not None
    assert few.moves <= 16 * SPEC.layers


def test_json_has_stable_keys(found: Advice) -> None:
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(data) == [
        "schema",
        "trace",
        "topology",
        "settings",
        "now",
        "answers",
        "advised",
        "regret",
        "options",
        "notes",
    ]
    assert list(data["answers"]) == ["placement", "eplb", "slots", "policy"]
    assert list(data["options"][0]) == [field.name for field in dataclasses.fields(Option)]


def test_a_good_placement_stays_and_eplb_does_not_pay(trace: Trace) -> None:
    judged = steps_of(part_of(trace, "held-out"), GROUP, tokens_per_rank=64, max_steps=6)
    fitted = steps_of(part_of(trace, "fit"), GROUP, tokens_per_rank=64, max_steps=6)
    # what runs was planned with more effort, on what is judged as well
    running = solve(judged, GROUP, slots_per_rank=3, effort=3e7, rows=2000, costs=costs_of(judged, GROUP)).placement
    again = advise(trace, GROUP, previous=running, **HOW)
    assert again.answers["placement"].startswith("stay with the running placement")
    assert again.answers["eplb"].startswith("EPLB will not pay here")
    assert not any(option.pays for option in again.options if option.kind == "placement")
    assert len(fitted)
    assert not any("contiguous" in note for note in again.notes)


def test_a_horizon_too_short_keeps_everything_where_it_is(trace: Trace) -> None:
    poor = Placement([[[e, (e + 6) % 12, (e + 1) % 12] for e in range(0, 12, 2)]] * 2, 12)
    brief = advise(trace, GROUP, previous=poor, horizon_s=1e-6, **HOW)
    assert brief.answers["placement"].startswith("stay")
    assert brief.advised is None
    assert not any(option.pays for option in brief.options if option.kind == "placement")


def test_the_plan_that_is_handed_out_is_the_one_that_is_advised(trace: Trace) -> None:
    poor = Placement([[[e, (e + 6) % 12, (e + 1) % 12] for e in range(0, 12, 2)]] * 2, 12)
    found = advise(trace, GROUP, previous=poor, horizon_s=1e6, **HOW)
    assert found.advised in ("eplb", f"{FEW_MOVES} moves a layer", "re-plan")
    assert found.answers["placement"].startswith(f"re-place ({found.advised})")
    judged = steps_of(part_of(trace, "held-out"), GROUP, tokens_per_rank=64, max_steps=6)
    chosen = next(option for option in found.options if option.name == found.advised)
    assert score(judged, found.plan.placement, costs_of(judged, GROUP)).mean_s == pytest.approx(chosen.step_s)
    assert found.plan.terms["migration"]["moves"] == chosen.moves


def option(name: str, kind: str, gain: float, **changes: object) -> Option:
    plain = Option(
        name=name, kind=kind, solver="moesim", policy="nearest", slots_per_rank=3, engine="SGLang", step_s=1 - gain,
        gain=gain, gain_error=0.001, fit_step_s=1.0, balance=0.9, moves=100, move_s=1.0, break_even_s=10.0,
        pays=gain > 0.01,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def test_policies_that_take_long_are_judged_on_a_few_steps(found: Advice, trace: Trace) -> None:
    judged = steps_of(part_of(trace, "held-out"), GROUP, tokens_per_rank=64, max_steps=6)
    assert len(judged) > SLOW_STEPS
    costs, stay = costs_of(judged, GROUP), solve(judged, GROUP, slots_per_rank=3, solver="contiguous").placement
    for policy, count in (("hash", len(judged)), ("token-aware", SLOW_STEPS)):
        held = judged.take(slice(0, count))
        was, is_ = (score(held, stay, costs, name) for name in ("nearest", policy))
        option_ = next(option for option in found.options if option.name == f"{policy}, stay")
        assert option_.step_s == pytest.approx(is_.mean_s)
        assert option_.gain == pytest.approx(1 - is_.mean_s / was.mean_s)
    assert any("first 2 held-out steps alone" in note and "token-aware" in note for note in found.notes)
    few = advise(trace, GROUP, max_steps=2, **HOW)
    assert not any("first 2 held-out steps alone" in note for note in few.notes)


def test_copies_are_weighed_against_the_best_placement_without_them() -> None:
    placed = [option("eplb", "placement", 0.3, solver="eplb"), option("re-plan", "placement", 0.2)]
    lines = answers([*placed, option("4 slots a rank", "slots", 0.35, slots_per_rank=4)], "nearest", 3)
    assert "takes 7.1% less than with 3 (eplb)" in lines["slots"]
    lines = answers([*placed, option("4 slots a rank", "slots", 0.3, slots_per_rank=4)], "nearest", 3)
    assert lines["slots"] == "keep 3 slots a rank: with 4 a step takes +0.0%"


def test_of_answers_that_are_about_as_good_the_one_that_moves_least_is_given() -> None:
    placed = [
        option("eplb", "placement", 0.05, solver="eplb"),
        option("16 moves a layer", "placement", 0.17, move_s=0.1),
        option("re-plan", "placement", 0.20),
    ]
    lines = answers(placed, "nearest", 3)
    assert lines["placement"].startswith("re-place (16 moves a layer)")
    assert "re-plan saves 20.0%" in lines["placement"]
    assert lines["eplb"].startswith("EPLB pays")
    assert lines["slots"] == "keep 3 slots a rank: no other number fits"
    assert lines["policy"].startswith("keep policy nearest")


def test_a_policy_that_no_engine_runs_is_told_apart() -> None:
    placed = [option("eplb", "placement", 0.0, solver="eplb"), option("re-plan", "placement", 0.2)]
    more = [
        option("4 slots a rank", "slots", 0.3, slots_per_rank=4),
        option("sglang, re-plan", "policy", 0.25, policy="sglang", solver="re-plan"),
        option("token-aware, re-plan", "policy", 0.4, policy="token-aware", solver="re-plan",
               engine="needs engine support"),
    ]  # fmt: skip
    lines = answers([*placed, *more], "nearest", 3)
    assert lines["slots"].startswith("more copies pay: with 4 slots a rank")
    assert lines["policy"].startswith("sglang (SGLang) saves 25.0% with re-plan (nearest: 20.0%)")
    assert "token-aware would save 40.0%" in lines["policy"]
    assert "needs engine support" in lines["policy"]
    assert (
        "within the noise"
        in answers(
            [option("eplb", "placement", 0.02, solver="eplb", gain_error=0.05, pays=False), placed[1]], "nearest", 3
        )["eplb"]
    )


def test_a_policy_is_compared_on_the_steps_on_which_it_was_judged() -> None:
    placed = [option("eplb", "placement", 0.0, solver="eplb"), option("re-plan", "placement", 0.2)]
    more = [
        option("sglang, re-plan", "policy", 0.22, policy="sglang", solver="re-plan"),
        option("batch-lp, re-plan", "policy", 0.24, policy="batch-lp", solver="re-plan"),
    ]
    # on the first steps, where batch-lp was judged, the re-plan alone saves as much
    lines = answers([*placed, *more], "nearest", 3, {"batch-lp": 0.235})
    assert lines["policy"] == "sglang (SGLang) saves 22.0% with re-plan (nearest: 20.0%)"
    lines = answers([*placed, more[1]], "nearest", 3, {"batch-lp": 0.22})
    assert lines["policy"].endswith("saves 24.0% with re-plan (nearest: 22.0%)")


def test_a_search_that_the_shared_deadline_cut_says_so_and_not_that_somebody_asked(trace: Trace) -> None:
    fitted = steps_of(part_of(trace, "fit"), GROUP, tokens_per_rank=64, max_steps=2)
    with Budget(1e-6, 1).part() as stop:
        plan = solve(fitted, GROUP, slots_per_rank=3, stop=stop)
    assert any(note.startswith("cut by the deadline that all searches share") for note in plan.notes)
    assert not any("on request" in note for note in plan.notes)


def test_searches_share_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("moesim.study.budget.working_s", lambda: now[0])

    def most(budget: Budget, took: float) -> float:
        """Seconds after which the next search is told to stop, which then takes so many."""
        with budget.part() as stop:
            began = now[0]
            while not stop():
                now[0] += 0.125
            found = now[0] - began
            now[0] = began + took
        return found

    budget = Budget(10.0, 5)
    # nobody has more than a fifth; what one takes too long, those after it have less
    assert [most(budget, took) for took in (1, 6, 2, 0)] == pytest.approx([2, 2, 1, 0.5], abs=0.13)
    assert budget.cut == 4
    with budget.part():
        pass
    assert budget.cut == 4
    late = Budget(10.0, 5)
    most(late, 100)
    assert most(late, 1) == pytest.approx(0.2, abs=0.13)
