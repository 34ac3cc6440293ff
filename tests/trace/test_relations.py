"""Matrices of pairs, windows and domains agree with the statistics of the same trace."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.base.errors import InputError
from moesim.spec import ModelSpec
from moesim.trace import Trace, statistics
from moesim.trace.relations import domain_divergence, pair_lift, window_divergence

SPEC = ModelSpec("pairs", (0, 1), 2, experts=6, top_k=2, hidden=8, intermediate=8)


def trace(tokens: int = 4000) -> Trace:
    rng = np.random.default_rng(0)
    domain = np.arange(tokens) % 2
    # experts 2k and 2k+1 are always picked together in layer 0; layer 1 is random, but each domain has its half
    first = rng.integers(3, size=tokens) * 2
    second = np.stack([rng.permutation(3)[:2] for _ in range(tokens)]) + 3 * domain[:, None]
    routes = np.stack([np.stack([first, first + 1], axis=1), second], axis=1).astype(np.int16)
    return Trace(SPEC, routes=routes, request=np.arange(tokens) // 10, domain=domain, domains=("a", "b"))


def test_lift_finds_the_experts_that_are_picked_together():
    lift = pair_lift(trace(), 0)
    assert np.array_equal(lift, lift.T, equal_nan=True)
    assert np.isnan(np.diag(lift)).all()
    # 3 of 15 pairs hold all of the mass, shares are equal: each has 15 / 3 times what chance gives
    assert lift[0, 1] == pytest.approx(5, rel=0.05)
    assert lift[0, 2] == 0


def test_divergence_is_that_of_the_statistics():
    found = trace()
    bits = domain_divergence(found)
    assert np.diag(bits).tolist() == [0, 0]
    assert bits[0, 1] == pytest.approx(statistics(found).domain_bits.mean())
    assert domain_divergence(found, 1)[0, 1] == pytest.approx(1.0)
    windows = window_divergence(found, 4)
    assert windows.shape == (4, 4)
    adjacent = np.mean([windows[i, i + 1] for i in range(3)])
    assert adjacent == pytest.approx(statistics(found).drift_bits.mean())


def test_counts_tell_nothing_of_pairs():
    counted = Trace(SPEC, given_counts=np.ones((1, 2, 6), np.int64))
    with pytest.raises(InputError, match="counts only"):
        pair_lift(counted, 0)
    assert window_divergence(counted, 1).tolist() == [[0]]
