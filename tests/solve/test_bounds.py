"""No placement beats the bound: brute force over small layers, any placement over larger ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.placement import Placement
from moesim.solve import SOLVERS, Problem
from moesim.solve.bounds import step_bound
from moesim.solve.coverage import uncovered_tokens
from moesim.solve.objective import score

MakeProblem = Callable[..., Problem]
TRANSPORTS = ["hierarchical", "direct", "rank-dedup", "allgather"]
relaxed = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(problem: Problem, placement: Placement) -> None:
    found = score(problem.batches, placement, problem.costs, problem.policy)
    bound = step_bound(problem.batches, problem.cluster, problem.costs, problem.slots_per_rank)
    assert (found.step_s >= bound.steps_s * (1 - 1e-9)).all()
    assert (found.layer_s.mean(axis=0) >= bound.layer_s * (1 - 1e-9)).all()
    assert (bound.layer_s >= np.maximum(bound.load_s, bound.traffic_s) * (1 - 1e-9)).all()
    assert bound.step_s > 0


@pytest.mark.parametrize("transport", TRANSPORTS)
@relaxed
@given(seed=st.integers(0, 10**6), tokens=st.sampled_from([16, 256, 4096]), skew=st.sampled_from([0.0, 1.0, 3.0]))
def test_random_placements_never_beat_the_bound(
    make_problem: MakeProblem, transport: str, seed: int, tokens: int, skew: float
) -> None:
    rng = np.random.default_rng(seed)
    nodes, each = [(1, 2), (2, 1), (2, 2), (3, 2)][seed % 4]
    experts = int(rng.integers(4, 12))
    slots = int(rng.integers(-(-experts // (nodes * each)), experts + 1))
    problem = make_problem(
        nodes, each, slots, tokens, seed, transport=transport, skew=skew, experts=experts,
        top_k=int(rng.integers(1, 4)), policy=["nearest", "hash", "uniform"][seed % 3], solver="random",
    )  # fmt: skip
    check(problem, Placement(SOLVERS.get("random")(problem), experts))
    check(problem, Placement(SOLVERS.get("eplb")(problem), experts))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("tokens", [32, 2048])
def test_the_best_of_all_placements_does_not_beat_the_bound(
    make_problem: MakeProblem, transport: str, tokens: int
) -> None:
    problem = make_problem(2, 1, 3, tokens, layers=1, experts=4, transport=transport, solver="random")
    sets = [list(held) + [-1] * (3 - n) for n in range(4) for held in itertools.combinations(range(4), n)]
    tried = 0
    for first, second in itertools.product(sets, sets):
        if set(range(4)) <= {*first, *second}:
            check(problem, Placement(np.array([[first, second]]), 4))
            tried += 1
    assert tried == 3**4 - 31  # each expert on either rank or both, no rank with all four


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_choice_of_experts_covers_more_tokens_than_the_bound_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, room = 6, int(rng.integers(1, 7))
    routes = np.array([rng.permutation(experts)[:3] for _ in range(40)], np.int16)
    routes[rng.random(routes.shape) < 0.2] = -1
    node = np.array([0, 0, 1], np.int32)
    home = rng.integers(3, size=40).astype(np.int32)
    by_node, by_home = uncovered_tokens(routes[:, None], home, node, np.array([room, experts]), experts)
    assert (by_node[0, 1], by_home[0, 2]) == (0, 0)
    for kept in itertools.combinations(range(experts), room):
        leave = ~(np.isin(routes, kept) | (routes < 0)).all(axis=1)
        assert leave[node[home] == 0].sum() >= by_node[0, 0]
        assert leave[home == 1].sum() >= by_home[0, 1]


def test_a_single_rank_is_at_its_bound(make_problem: MakeProblem) -> None:
    problem = make_problem(1, 1, 8, 512, solver="contiguous")
    placement = Placement(SOLVERS.get("contiguous")(problem), problem.experts)
    found = score(problem.batches, placement, problem.costs)
    bound = step_bound(problem.batches, problem.cluster, problem.costs, 8)
    assert found.mean_s < 1.35 * bound.step_s
