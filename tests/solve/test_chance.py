"""How much of what experts differ by in a trace is chance, and that plans from few requests reckon with it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moesim.solve import Objective, solve
from moesim.solve.search import rows as rows_module
from moesim.solve.search import stages
from moesim.solve.search.chance import chance
from moesim.solve.search.rows import sample_rows
from moesim.solve.search.stages import make_stages
from moesim.trace import Trace
from tests.solve.conftest import tiny_cluster, tiny_spec, tiny_trace

POPULAR = np.random.default_rng(5).dirichlet(np.full(16, 3.0))
"""Popularity of sixteen experts."""


def of_requests(requests: int, seed: int, tokens: int = 32, like: float = 12.0) -> Trace:
    """Tokens of requests with a popularity of their own around the common one, nearer to it the more ``like``."""
    rng = np.random.default_rng(seed)
    own = rng.dirichlet(like * 16 * POPULAR, requests)
    noise = rng.gumbel(size=(requests, tokens, 1, 16))
    routes = np.argsort(-(np.log(np.maximum(own, 1e-9))[:, None, None] + noise), axis=3)[..., :1]
    spec = tiny_spec(layers=1, experts=16, top_k=1)
    return Trace(spec, routes=routes.reshape(-1, 1, 1).astype(np.int16), request=np.repeat(np.arange(requests), tokens))


def estimate(trace: Trace) -> float:
    return float(chance(trace, np.arange(trace.rows))[0])


@pytest.mark.parametrize("requests", [4, 16, 64])
@pytest.mark.parametrize("like", [0.5, 12.0])
def test_what_is_put_down_to_chance_is_what_draws_closest_to_the_truth(requests: int, like: float) -> None:
    found, best = [], []
    for seed in range(60):
        trace = of_requests(requests, seed, like=like)
        found.append(estimate(trace))
        off = trace.loads[0] / trace.rows - 1 / 16
        best.append((off @ (POPULAR - 1 / 16), off @ off))
    along, long = np.sum(best, axis=0)
    assert np.mean(found) == pytest.approx(1 - along / long, abs=0.06)


def test_the_more_requests_the_less_is_chance() -> None:
    found = [np.mean([estimate(of_requests(n, seed)) for seed in range(20)]) for n in (2, 4, 16, 64, 600)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.2
    assert found[-1] < 0.02


def test_tokens_of_even_experts_differ_by_chance_alone() -> None:
    rng = np.random.default_rng(0)
    spec = tiny_spec(layers=1, experts=16, top_k=1)
    routes = rng.integers(0, 16, (4096, 1, 1)).astype(np.int16)
    assert estimate(Trace(spec, routes=routes, request=np.arange(4096) // 8)) > 0.8
    dealt = np.tile(np.arange(16, dtype=np.int16), 256)[:, None, None]
    assert estimate(Trace(spec, routes=dealt, request=np.arange(4096) // 32)) == 0  # exactly even: nothing to take out


@pytest.mark.parametrize("recorded", ["one", "each"])
def test_runs_stand_in_for_requests_that_were_not_recorded(recorded: str) -> None:
    trace = of_requests(8, 3, tokens=64, like=0.5)
    # the eight requests are the eight runs
    blind = dataclasses.replace(trace, request=np.zeros(512, int) if recorded == "one" else np.arange(512))
    assert estimate(blind) == pytest.approx(estimate(trace))


def test_picks_of_none_and_rows_that_did_not_run_count_nothing() -> None:
    trace = of_requests(8, 3)
    more = np.concatenate([trace.routes, np.full((64, 1, 1), -1, np.int16)])
    padded = Trace(trace.spec, routes=more, request=np.concatenate([trace.request, np.repeat([8, 9], 32)]))
    assert estimate(padded) == pytest.approx(estimate(trace) * 10 / 9 * 7 / 8)  # two requests more that say nothing
    assert chance(padded, np.arange(trace.rows))[0] == estimate(trace)


def test_scenarios_are_less_uneven_by_what_is_chance(make_problem, monkeypatch) -> None:
    problem = make_problem(tokens=64, skew=0.5)
    monkeypatch.setattr(rows_module, "_LITTLE", 2.0)
    raw = sample_rows(problem, 256, 8)
    assert not raw.chance.any()
    monkeypatch.undo()
    found = sample_rows(problem, 256, 8)
    trace = problem.batches[0].trace
    np.testing.assert_allclose(found.chance, chance(trace, np.arange(trace.rows)))
    assert (found.chance > 0.1).all()
    np.testing.assert_allclose(found.demand.sum(axis=2), raw.demand.sum(axis=2))
    spread = [each.demand - each.demand.mean(axis=2, keepdims=True) for each in (raw, found)]
    np.testing.assert_allclose(spread[1], spread[0] * (1 - found.chance)[:, None])


def test_where_many_requests_are_fitted_nothing_is_taken_out(make_problem) -> None:
    problem = make_problem(tokens=2048)
    trace = problem.batches[0].trace
    assert (chance(trace, np.arange(trace.rows)) < 0.1).all()
    assert not sample_rows(problem, 256, 8).chance.any()


def test_a_plan_from_few_requests_says_so() -> None:
    options = {"slots_per_rank": 3, "tokens_per_rank": 16, "jobs": 1, "effort": 1e5}
    trace = tiny_trace(tiny_spec(), 64, skew=0.5)
    (note,) = (note for note in solve(trace, tiny_cluster(), **options).notes if note.startswith("few to fit"))
    assert note.startswith("few to fit (8 requests): ")
    blind = dataclasses.replace(trace, request=np.zeros(64, int))
    (note,) = (note for note in solve(blind, tiny_cluster(), **options).notes if note.startswith("few to fit"))
    assert note.startswith("few to fit (64 tokens, requests not told apart): ")
    many = solve(tiny_trace(tiny_spec(), 2048), tiny_cluster(), **options)
    assert not any(note.startswith("few to fit") for note in many.notes)


def test_the_note_is_of_the_layers_that_it_concerns(make_problem) -> None:
    problem = make_problem(tokens=64)
    assert "25% of what makes experts uneven is put down to chance in 1 of 2 layers, " in stages._chance_note(
        problem, np.array([0.0, 0.25])
    )
    assert "put down to chance, " in stages._chance_note(problem, np.array([0.5, 0.25]))


@pytest.mark.parametrize("policy", ["shares", "batch-lp", "token-aware"])
def test_policies_that_even_out_every_batch_are_planned_for_what_was_seen(make_problem, policy: str) -> None:
    problem = make_problem(tokens=64, skew=0.5, policy=policy)
    assert not make_stages(problem, 1)[0].rows.chance.any()
    for_load = dataclasses.replace(problem, objective=Objective("load"))
    assert make_stages(for_load, 1)[0].rows.chance.all()
