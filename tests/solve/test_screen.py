"""The screen of moves: its guess is the change of what pairs on a node are worth, and saves counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.placement import Placement
from moesim.solve.search.anneal import anneal
from moesim.solve.search.cost import cost, prices
from moesim.solve.search.screen import Screen, at_best, guess, learn, look_again, look_at, make_screen
from moesim.solve.search.settle import make_state, recount, settle
from moesim.solve.search.state import COVER, NEAREST, NOTHING, PER_NODE, PER_RANK, PICK_HASH
from tests.solve.test_search import LANDING, NODE, RANKS, build


def saved(screen: Screen) -> float:
    """What all pairs of experts save on the nodes that hold both."""
    present = (screen.here > 0).astype(float)
    return float(np.einsum("en,fn,ef->", present, present, screen.worth)) / 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_guess_is_the_change_of_what_pairs_on_a_node_save(seed: int) -> None:
    state, _, _ = build(seed, PER_NODE, NEAREST)
    screen = make_screen(state)
    rng = np.random.default_rng(seed)
    for _ in range(30):
        rank, other = rng.integers(RANKS, size=2)
        slot, other_slot = rng.integers(4, size=2)
        old = int(state.slots[rank, slot])
        swap = bool(rng.integers(2))
        new = int(state.slots[other, other_slot]) if swap else int(rng.integers(8))
        if rank == other or new == old or state.held[new, rank] or (swap and state.held[old, other]):
            continue
        if not swap and state.copies[old] < 2:
            continue
        first, second = int(NODE[rank]), int(NODE[other]) if swap else -1
        before, expected = saved(screen), guess(screen.here, screen.near, screen.worth, first, second, old, new)
        state.slots[rank, slot] = new
        if swap:
            state.slots[other, other_slot] = old
        settle(state)
        look_at(screen, state.node, state.held, new)
        look_at(screen, state.node, state.held, old)
        assert before - saved(screen) == pytest.approx(expected, abs=1e-12)
        kept = screen.near.copy(), screen.here.copy(), screen.worth.copy()
        look_again(screen, state)
        np.testing.assert_array_equal(screen.here, kept[1])
        np.testing.assert_allclose(kept[2] @ (screen.here > 0), kept[0], atol=1e-12)


def test_seconds_of_a_guess_are_learned_and_how_far_they_are_off() -> None:
    state, _, _ = build(0, PER_NODE, NEAREST)
    screen, rng = make_screen(state), np.random.default_rng(0)
    assert at_best(screen.fit, 1.0, 1.0) == -np.inf  # nothing is known yet
    for change in rng.normal(size=5000):
        learn(screen.fit, change, 3.0 * change + rng.normal() * 0.5)
    assert at_best(screen.fit, 2.0, 0.0) == pytest.approx(6.0, abs=0.1)
    assert at_best(screen.fit, 2.0, 2.0) == pytest.approx(5.0, abs=0.2)
    assert at_best(screen.fit, 2.0, math.inf) == -np.inf


@pytest.mark.parametrize("policy", [NEAREST, PICK_HASH, COVER])
@pytest.mark.parametrize("mode", [PER_NODE, PER_RANK, NOTHING])
def test_whatever_is_screened_the_answer_is_counted_in_full(mode: int, policy: int) -> None:
    if policy == COVER and mode != PER_NODE:
        return
    scale = prices(np.full((5, RANKS), 1e-6))
    for margin in (-1.0, 0.5, math.inf):
        state, _, _ = build(3, mode, policy, even=float(policy == COVER))
        before = cost(state, scale)
        found = anneal(state, scale, 400_000, hot=0.1, cold=0.001, seed=1, margin=margin)
        Placement(state.slots[None], 8)
        np.testing.assert_array_equal(state.counts, recount(state))
        assert found.best_s == pytest.approx(cost(state, scale))
        assert found.best_s <= before


def test_the_same_work_tries_more_moves_where_guesses_spare_counting() -> None:
    # groups of experts that tokens pick together: a guess from pairs says most
    rng = np.random.default_rng(0)
    routes = np.array([rng.permutation(8)[:4] + 8 * rng.integers(3) for _ in range(6000)], np.int16)
    home = np.sort(rng.integers(RANKS, size=6000)).astype(np.int32)
    slots = rng.permutation(24).reshape(RANKS, 4).astype(np.int32)
    demand = np.bincount(routes.ravel(), minlength=24)[None].astype(float)
    scale = prices(np.full((5, RANKS), 1e-7))
    found = {}
    for margin in (0.5, math.inf):
        state = make_state(routes, home, NODE, LANDING, slots, demand, PER_NODE)
        found[margin] = anneal(state, scale, 3_000_000, hot=0.01, cold=0.0002, seed=1, margin=margin)
    assert found[0.5].moves > 1.2 * found[math.inf].moves
    assert found[0.5].best_s <= 1.02 * found[math.inf].best_s
