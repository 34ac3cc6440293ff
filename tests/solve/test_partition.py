"""Experts that are picked together stand together: on tiny layers as well as any arrangement does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.placement import Placement
from moesim.solve import Constraints, Problem
from moesim.solve.search.partition import together
from moesim.solve.solvers.moesim import BASELINES, baseline_candidates, picked_together


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), nodes=st.integers(1, 4), per_node=st.integers(1, 3), slots=st.integers(1, 5),
    experts=st.integers(1, 12),
)  # fmt: skip
def test_every_expert_is_somewhere_and_none_twice_on_a_rank(
    seed: int, nodes: int, per_node: int, slots: int, experts: int
) -> None:
    rng = np.random.default_rng(seed)
    ranks = nodes * per_node
    experts = min(experts, ranks * slots)
    routes = np.stack([np.argsort(rng.random((30, experts)))[:, :3] for _ in range(2)], axis=1).astype(np.int16)
    routes[rng.random(routes.shape) < 0.1] = -1
    load = rng.integers(0, 50, (2, experts))
    node = rng.permutation(np.repeat(np.arange(nodes, dtype=np.int32), per_node))
    speed = rng.uniform(0.5, 1, ranks)
    found = together(routes, load, node, slots, speed=speed, seed=seed)
    assert found.shape == (2, ranks, slots)
    Placement(found, experts)  # refuses what is no placement
    np.testing.assert_array_equal(found, together(routes, load, node, slots, speed=speed, seed=seed))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_halving_of_six_experts_keeps_more_pairs_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    routes = np.argsort(rng.random((40, 6)) + rng.random(6), axis=1)[:, :2].astype(np.int16)
    even = np.ones((1, 6))
    found = together(routes[:, None], even, np.array([0, 1], np.int32), 3, seed=seed)[0]

    def kept(node: set[int]) -> int:
        return sum((int(a) in node) == (int(b) in node) for a, b in routes)

    assert kept(set(found[0].tolist())) == max(kept(set(half)) for half in combinations(range(6), 3))


@pytest.mark.parametrize("copies", [1, 2])
def test_planted_groups_are_found(copies: int) -> None:
    rng = np.random.default_rng(1)
    names = rng.permutation(32).reshape(4, 8)
    group = rng.integers(4, size=2000)
    routes = np.array([rng.permutation(names[g])[:4] for g in group], np.int16)
    load = np.bincount(routes.ravel(), minlength=32)[None]
    node = np.repeat(np.arange(4, dtype=np.int32), 4)
    found = together(routes[:, None], load, node, 2 * copies)[0]
    at = [set(found[node == place].ravel().tolist()) for place in range(4)]
    assert all(any(set(members.tolist()) <= held for held in at) for members in names)


def test_a_slow_node_is_given_less() -> None:
    rng = np.random.default_rng(2)
    routes = np.argsort(rng.random((4000, 16)), axis=1)[:, None, :2].astype(np.int16)
    load = rng.uniform(10, 100, (1, 16))
    node = np.repeat(np.arange(2, dtype=np.int32), 2)
    found = together(routes, load, node, 4, speed=np.array([1.0, 1.0, 0.6, 0.6]))[0]
    carried = load[0][found].sum(axis=1).reshape(2, 2).sum(axis=1)
    assert carried[1] < 0.85 * carried[0]


def test_it_is_a_candidate_of_a_short_search_where_nodes_are_several(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(seed=4, options={"effort": 1e6})
    assert baseline_candidates(problem)[-1].experts.tolist() == picked_together(problem).tolist()
    long = make_problem(seed=4, options={"effort": 1e9})
    alone = make_problem(nodes=1, ranks_per_node=4, seed=4, options={"effort": 1e6})
    assert len(baseline_candidates(long)) == len(baseline_candidates(problem)) - 1
    assert len(baseline_candidates(alone)) == len(BASELINES) + 1  # the balanced one


def test_it_respects_constraints(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(seed=4)
    room = np.full((problem.layers, problem.ranks), 3)
    room[:, 0] = 2
    kept = Constraints(rank_slots=tuple(room[0].tolist()), hot=2)
    object.__setattr__(problem, "constraints", kept)
    assert not problem.limits.breaking(picked_together(problem)).any()
