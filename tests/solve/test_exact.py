"""CP-SAT proves optima: small layers against brute force, EPLB's published example against its known optimum."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.base.errors import Infeasible, InputError
from moesim.solve import SOLVERS, Problem
from moesim.solve.exact import Exact, smallest_largest_load
from moesim.solve.packing import rank_loads


def brute_force(load: list[int], ranks: int, slots: int) -> float:
    """The least largest load over all placements."""
    total = len(load)
    held = [set(c) for size in range(slots + 1) for c in itertools.combinations(range(total), size)]
    best = float("inf")
    for sets in itertools.combinations_with_replacement(held, ranks):
        copies = np.zeros(total)
        for one in sets:
            copies[list(one)] += 1
        if (copies > 0).all():
            best = min(best, max(sum(load[e] / copies[e] for e in one) for one in sets))
    return best


def balancedness(weight: NDArray[np.int64], found: list[Exact]) -> float:
    """Mean over layers of mean over largest load of a rank."""
    return float(np.mean([w.sum() / len(f.experts) / f.largest for w, f in zip(weight, found, strict=True)]))


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=3, max_size=5).filter(any), st.integers(2, 3))
def test_small_layers_are_solved_to_the_optimum(load: list[int], ranks: int) -> None:
    slots = min(2 if len(load) <= 2 * ranks else 3, len(load))
    found = smallest_largest_load(load, ranks, slots, deadline_s=30)
    assert found.proven
    assert found.largest == pytest.approx(brute_force(load, ranks, slots))
    assert found.bound == pytest.approx(found.largest)
    assert found.largest == pytest.approx(rank_loads(found.experts[None], np.array([load])).max())


def test_the_published_example_with_groups_on_nodes_is_proven(shared_data: Path) -> None:
    with np.load(shared_data / "eplb/reference.npz") as data:
        weight = data["readme__weight"]
    groups, node = [e // 3 for e in range(12)], [0] * 4 + [1] * 4
    found = [smallest_largest_load(w, 8, 2, groups=groups, node=node, deadline_s=120) for w in weight]
    assert all(f.proven for f in found)
    assert np.mean([w.sum() / 8 / f.largest for w, f in zip(weight, found, strict=True)]) == pytest.approx(
        0.8301, abs=1e-4
    )


def test_the_published_example_without_groups_is_proven(shared_data: Path) -> None:
    with np.load(shared_data / "eplb/reference.npz") as data:
        weight = data["readme__weight"]
    found = [smallest_largest_load(w, 8, 2, deadline_s=300, jobs=2) for w in weight]
    assert all(f.proven for f in found)
    assert np.mean([w.sum() / 8 / f.largest for w, f in zip(weight, found, strict=True)]) == pytest.approx(
        0.8948, abs=1e-4
    )


def test_a_deadline_gives_the_best_so_far_with_its_bound() -> None:
    load = np.random.default_rng(0).integers(1, 1000, 64)
    found = smallest_largest_load(load, 16, 5, deadline_s=2)
    assert load.sum() / 16 <= found.bound <= found.largest <= load.sum()


def test_a_layer_too_large_to_model_in_time_is_answered_in_time() -> None:
    load = np.random.default_rng(0).integers(1, 1000, 256)
    began = time.monotonic()
    found = smallest_largest_load(load, 256, 2, deadline_s=1)  # 17 million variables
    assert time.monotonic() - began < 20
    assert not found.proven
    assert load.sum() / 256 <= found.bound <= found.largest


def test_impossible_constraints_are_proven() -> None:
    with pytest.raises(Infeasible, match="2 ranks of 2 slots cannot hold 5 experts; add slots per rank"):
        smallest_largest_load([1, 1, 1, 1, 1], 2, 2)
    with pytest.raises(Infeasible, match="keeps every expert group on one node"):
        # three groups do not spread equally over two nodes
        smallest_largest_load([1, 1, 1], 2, 3, groups=[0, 1, 2], node=[0, 1])


def test_as_a_solver_it_says_what_is_proven(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(experts=6, slots=2, solver="cp-sat")
    SOLVERS.get("cp-sat")(problem)
    assert "cp-sat: balance by load proven optimal in 2 of 2 layers" in problem.notes
    hierarchical = make_problem(solver="cp-sat", options={"hierarchical": True})
    with pytest.raises(InputError, match="2 nodes do not divide 1 expert group,"):
        SOLVERS.get("cp-sat")(hierarchical)
