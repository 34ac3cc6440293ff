"""Tokens drawn for counts: each expert as often as counted, no expert twice, nothing else in common."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import InputError
from moesim.spec import ModelSpec
from moesim.trace import Trace, draw_tokens, make_batches

SPEC = ModelSpec("tiny", (0, 1), 2, experts=12, top_k=3, hidden=64, intermediate=64)


def counted(tokens: list[int], seed: int = 0, skew: float = 1.0) -> Trace:
    rng = np.random.default_rng(seed)
    weight = rng.lognormal(0, skew, (len(tokens), SPEC.layers, SPEC.experts))
    counts = np.zeros(weight.shape, np.int64)
    for step, many in enumerate(tokens):
        for layer in range(SPEC.layers):
            for _ in range(many):
                chance = weight[step, layer] / weight[step, layer].sum()
                counts[step, layer, rng.choice(SPEC.experts, SPEC.top_k, replace=False, p=chance)] += 1
    return Trace(SPEC, given_counts=counts, domain=np.arange(len(tokens)) % 2, domains=("a", "b"))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.lists(st.integers(1, 60), min_size=1, max_size=3))
def test_every_step_and_layer_has_its_counts(seed: int, tokens: list[int]) -> None:
    trace = counted(tokens, seed)
    drawn = draw_tokens(trace, seed=seed)  # a Trace refuses an expert twice in one pick
    assert drawn.rows == sum(tokens)
    np.testing.assert_array_equal(drawn.counts, trace.counts)
    np.testing.assert_array_equal(drawn.domain_loads(), trace.domain_loads())
    assert draw_tokens(trace, seed=seed) == drawn
    assert draw_tokens(drawn) is drawn


def test_layers_that_were_counted_less_have_tokens_without_an_expert() -> None:
    counts = np.zeros((1, 2, 12), np.int64)
    counts[0, 0, :6] = 5  # ten tokens
    counts[0, 1, 0] = 11  # eleven, for each picks it once
    drawn = draw_tokens(Trace(SPEC, given_counts=counts))
    assert drawn.rows == 11
    np.testing.assert_array_equal(drawn.counts, counts)


def test_fewer_tokens_keep_the_proportions() -> None:
    trace = counted([400, 800])
    drawn = draw_tokens(trace, most=600)
    np.testing.assert_array_equal(np.unique(drawn.step, return_counts=True)[1], [200, 400])
    np.testing.assert_allclose(drawn.counts, trace.counts / 2, atol=1)
    assert "600 tokens for 0.5 of the picks" in make_batches(drawn, 2, tokens_per_rank=50).notes[0]


def test_a_step_without_picks_has_no_tokens() -> None:
    counts = np.concatenate([np.zeros((1, 2, 12), np.int64), counted([400]).counts])
    for most in (600, 100):
        drawn = draw_tokens(Trace(SPEC, given_counts=counts), most=most)
        assert (drawn.step == 1).all()
        assert drawn.rows == min(most, 400)


def test_who_is_picked_together_is_as_if_by_chance() -> None:
    trace = counted([20_000], skew=0.0)
    routes = draw_tokens(trace).routes
    assert routes is not None
    has = np.zeros((20_000, SPEC.layers, SPEC.experts))
    np.put_along_axis(has, routes.astype(int), 1.0, axis=2)
    flat = has.reshape(len(has), -1)
    together = flat.T @ flat / len(flat)
    inside = together[:12, :12][~np.eye(12, dtype=bool)]
    # three of twelve without replacement, and layers that know nothing of each other
    np.testing.assert_allclose(inside, 3 * 2 / (12 * 11), atol=0.012)
    np.testing.assert_allclose(together[:12, 12:], 1 / 16, atol=0.012)


def test_steps_say_that_tokens_are_drawn() -> None:
    batches = make_batches(draw_tokens(counted([64, 64])), 4, tokens_per_rank=16)
    assert len(batches) == 2
    assert batches.notes[0].startswith("drawn: only counts were recorded")
    fit, held_out = draw_tokens(counted([64, 64])).split(0.5)
    assert (fit.steps, held_out.steps, fit.step[0], held_out.step[0]) == (1, 1, 0, 1)


def test_nothing_to_draw_from() -> None:
    with pytest.raises(InputError, match="counts no picks at all"):
        draw_tokens(Trace(SPEC, given_counts=np.zeros((1, 2, 12), np.int64)))
    with pytest.raises(InputError, match="at least 1 token"):
        draw_tokens(counted([4]), most=0)
