"""The baselines and the fast path: what they put where."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import InputError
from moesim.placement import Placement
from moesim.solve import SOLVERS, Problem
from moesim.solve.packing import balance, greedy_copies, lightest_first, rank_loads
from moesim.solve.repair import repair_duplicates

NAMES = [name for name in SOLVERS.names() if name not in ("cp-sat", "eplb-hierarchical", "moesim")]
MakeProblem = Callable[..., Problem]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("nodes", "slots"), [(1, 4), (2, 2), (2, 5), (2, 9)])
def test_every_baseline_places_every_expert_and_none_twice_on_a_rank(
    make_problem: MakeProblem, name: str, nodes: int, slots: int
) -> None:
    problem = make_problem(nodes=nodes, slots=slots, solver=name)
    experts = SOLVERS.get(name)(problem)
    placement = Placement(experts, problem.experts)  # checks both at birth
    assert placement.experts.shape == (problem.layers, problem.ranks, slots)
    # slots stay empty only where a rank holds all experts
    held = np.minimum(slots, problem.experts)
    assert placement.empty_slots == problem.layers * problem.ranks * (slots - held)


def test_contiguous_keeps_blocks_and_repeats_ids(make_problem: MakeProblem) -> None:
    experts = SOLVERS.get("contiguous")(make_problem(slots=3))
    assert experts[0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 0], [1, 2, 3]]


def test_round_robin_deals_and_starts_one_rank_later(make_problem: MakeProblem) -> None:
    experts = SOLVERS.get("round-robin")(make_problem(slots=3))
    assert experts[0].tolist() == [[0, 4, 1], [1, 5, 2], [2, 6, 3], [3, 7, 4]]


def test_eplb_hierarchical_needs_groups_that_divide_and_keeps_them_on_a_node(make_problem: MakeProblem) -> None:
    with pytest.raises(InputError, match=r"no expert groups.*use eplb \(global\)"):
        SOLVERS.get("eplb-hierarchical")(make_problem())
    problem = make_problem(groups=4)
    experts = SOLVERS.get("eplb-hierarchical")(problem)
    node_of_slot = np.repeat(problem.cluster.node, problem.slots_per_rank)
    for layer in experts.reshape(problem.layers, -1):
        for group in range(4):
            assert len(set(node_of_slot[layer // 2 == group])) == 1


def test_greedy_copies_minimise_the_largest_share() -> None:
    copies = greedy_copies([[9.0, 4.0, 1.0]], 6, 8)
    assert copies.tolist() == [[3, 2, 1]]
    # no expert gets more copies than there are ranks, whatever its load
    assert greedy_copies([[9.0, 4.0, 1.0]], 6, 2).tolist() == [[2, 2, 2]]


loads = st.lists(st.integers(0, 1000), min_size=4, max_size=24).filter(lambda w: sum(w) > 0)


@settings(max_examples=60, deadline=None)
@given(loads, st.integers(2, 6), st.integers(0, 2))
def test_swaps_never_unbalance_and_stay_above_the_mean(load: list[int], ranks: int, more: int) -> None:
    slots = min(-(-len(load) // ranks) + more, len(load))
    weight = np.array([load], float)
    first = rank_loads(lightest_first(weight, ranks, slots), weight)
    after = rank_loads(balance(weight, ranks, slots), weight)
    assert after.max() <= first.max() * (1 + 1e-12)
    assert after.max() >= weight.sum() / ranks * (1 - 1e-12)
    np.testing.assert_allclose(after.sum(), weight.sum())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_repair_leaves_no_second_copy_and_changes_nothing_else_than_needed(data: st.DataObject) -> None:
    ranks, slots = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    total = data.draw(st.integers(1, ranks * slots))
    rest = data.draw(
        st.lists(st.integers(0, total - 1), min_size=ranks * slots - total, max_size=ranks * slots - total)
    )
    flat = data.draw(st.permutations([*range(total), *rest]))
    experts = np.array(flat, np.int32).reshape(1, ranks, slots)
    load = np.array([data.draw(st.lists(st.integers(0, 9), min_size=total, max_size=total))], float)
    twice = sum(slots - len(set(rank.tolist())) for rank in experts[0])
    repaired, changed = repair_duplicates(experts, load)
    Placement(repaired, total)
    assert changed <= twice  # one swap can undo two
    assert (changed == 0) == (twice == 0)
    assert np.count_nonzero(repaired != experts) <= 2 * twice


def test_repair_swaps_with_the_nearest_load() -> None:
    experts = [[[0, 0], [1, 2]]]
    repaired, changed = repair_duplicates(experts, [[8.0, 9.0, 4.0]])
    assert changed == 1
    assert repaired.tolist() == [[[0, 2], [1, 0]]] or repaired.tolist() == [[[2, 0], [1, 0]]]


def test_fast_path_balances_models_of_production_size() -> None:
    rng = np.random.default_rng(0)
    for ranks, slots in ((32, 9), (64, 5)):
        for sigma in (0.5, 1.0):
            load = 1e4 * rng.lognormal(0, sigma, (8, 256))
            ranked = rank_loads(balance(load, ranks, slots), load)
            balancedness = ranked.mean(axis=1) / ranked.max(axis=1)
            assert balancedness.mean() >= 0.9975
