"""Copies that share every batch: the load is that of the linear program, and the search finds what drains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog

from moesim.placement import Placement
from moesim.solve.search.anneal import anneal
from moesim.solve.search.cost import compute_s, cost, powers_s, prices
from moesim.solve.search.settle import make_state
from moesim.solve.search.sharing import find_spots, keep_shares, share_anew, share_load
from moesim.solve.search.state import NOTHING, PICK_HASH, State
from tests.solve.test_search import LANDING, NODE, RANKS, layer


def build(seed: int, unit: NDArray | None = None, scenarios: int = 3, experts: int = 8, slots: int = 3) -> State:
    rng = np.random.default_rng(seed)
    routes, home, placed = layer(experts, slots, rng)
    demand = rng.lognormal(0, 1, (scenarios, experts))
    return make_state(routes, home, NODE, LANDING, placed, demand, NOTHING, PICK_HASH, poured=True, unit=unit)


def least(held: NDArray, demand: NDArray, unit: NDArray) -> float:
    """Return the least time of the slowest rank, by linear program."""
    expert, rank = np.nonzero(held)
    cost = np.append(np.zeros(len(expert)), 1.0)
    work = np.zeros((len(unit), len(cost)))
    work[rank, np.arange(len(rank))] = unit[rank]
    work[:, -1] = -1
    whole = np.zeros((len(demand), len(cost)))
    whole[expert, np.arange(len(expert))] = 1
    return float(linprog(cost, A_ub=work, b_ub=np.zeros(len(unit)), A_eq=whole, b_eq=demand).fun)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), uneven=st.booleans())
def test_poured_load_is_that_of_the_linear_program(seed: int, uneven: bool) -> None:
    unit = np.random.default_rng(seed).uniform(1, 2, RANKS) if uneven else np.ones(RANKS)
    state = build(seed, unit)
    for scenario in range(3):
        demand = state.demand[:, scenario]
        assert state.load[:, scenario].sum() == pytest.approx(demand.sum())
        slowest = (state.load[:, scenario] * unit).max()
        optimum = least(state.held, demand, unit)
        assert optimum * (1 - 1e-9) <= slowest <= 1.01 * optimum


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_move_is_worked_out_as_from_scratch_and_happens_only_when_kept(seed: int) -> None:
    state, scale = build(seed), np.ones((5, RANKS))
    sharing, rng = share_load(state), np.random.default_rng(seed)
    total, each = np.zeros(3), np.zeros(3)
    for _ in range(8):
        rank, slot = int(rng.integers(RANKS)), int(rng.integers(3))
        old, new = int(state.slots[rank, slot]), int(rng.integers(8))
        if state.held[new, rank] or state.copies[old] < 2:
            continue
        before = sharing.time.copy(), state.load.copy()
        state.slots[rank, slot] = new
        state.held[old, rank], state.held[new, rank] = False, True
        state.copies[old] -= 1
        state.copies[new] += 1
        pair = np.array([new, old], np.int32)
        share_anew(sharing, state.slots, state.held, state.demand, pair, 2, total)
        np.testing.assert_array_equal(sharing.time, before[0])
        then = powers_s(total, RANKS, sharing.reference, 0, each)
        if rng.integers(2):
            keep_shares(sharing, state.load)
            assert compute_s(state.load, scale, 0) == pytest.approx(then)
            # two rounds from where it was are not quite thirty
            fresh = share_load(state).time.max(axis=0)
            assert (0.98 * fresh <= sharing.time.max(axis=0)).all()
            assert (sharing.time.max(axis=0) <= 1.25 * fresh).all()
            keep_shares(sharing, state.load)
        else:
            state.slots[rank, slot] = old
            state.held[old, rank], state.held[new, rank] = True, False
            state.copies[old] += 1
            state.copies[new] -= 1
            for expert in pair:
                find_spots(sharing, state.slots, state.held, expert)
            np.testing.assert_array_equal(state.load, before[1])


def test_the_search_connects_ranks_so_that_any_excess_drains() -> None:
    # in each scenario another expert is hot: shared evenly nothing is gained, drained over its neighbours it is
    rng = np.random.default_rng(0)
    routes, home, placed = layer(8, 4, rng)
    demand = np.ones((8, 8)) + 5 * np.eye(8)
    worth = prices(np.full((5, RANKS), 1e-6))
    state = make_state(
        routes, home, NODE, LANDING, placed, demand, NOTHING, PICK_HASH, poured=True, unit=np.full(RANKS, 1e-6)
    )
    before = cost(state, worth)
    anneal(state, worth, 3_000_000, hot=0.01, cold=0.0003, seed=1)
    Placement(state.slots[None], 8)
    assert cost(state, worth) < before
    mean = demand.sum(axis=1) / RANKS
    assert (state.load.max(axis=0) <= 1.02 * mean).all()
