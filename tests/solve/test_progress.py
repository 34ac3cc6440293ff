"""A watcher sees the anytime curve, a stop gives the best so far, and watching changes no answer."""

from __future__ import annotations

import numpy as np

from moesim.solve import Plan, solve
from moesim.solve.progress import Progress, Stop, Watcher

from .conftest import tiny_cluster, tiny_spec, tiny_trace


def plan(watch: Watcher | None = None, stop: Stop | None = None, solver: str = "moesim") -> Plan:
    spec = tiny_spec(layers=3, experts=16)
    return solve(
        tiny_trace(spec, 1024), tiny_cluster(), slots_per_rank=5, solver=solver, tokens_per_rank=64, watch=watch,
        stop=stop, jobs=2, **({"effort": 3e6} if solver == "moesim" else {}),
    )  # fmt: skip


def test_the_curve_falls_and_ends_at_the_score_of_the_plan():
    seen: list[Progress] = []
    found = plan(seen.append)
    assert seen[0].stage == "baselines"
    assert seen[-1] == Progress(seen[-1].seconds, found.score_s, "done", 1.0)
    best = [point.best_s for point in seen]
    assert best == sorted(best, reverse=True)
    assert [point.seconds for point in seen] == sorted(point.seconds for point in seen)


def test_watching_changes_no_answer():
    assert np.array_equal(plan(lambda _point: None).placement.experts, plan().placement.experts)


def test_a_stop_gives_the_best_so_far_and_says_so():
    seen: list[Progress] = []
    found = plan(seen.append, lambda: bool(seen))  # stop as soon as there is anything
    assert any("stopped on request" in note for note in found.notes)
    assert found.score_s <= seen[0].best_s


def test_solvers_that_do_not_tell_are_done_at_once():
    seen: list[Progress] = []
    found = plan(seen.append, solver="eplb")
    assert [(point.stage, point.best_s) for point in seen] == [("done", found.score_s)]
