"""Generators: labelled, seeded, and as skewed or structured as they say."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.base.errors import InputError
from moesim.spec import ModelSpec
from moesim.trace import DECODE, statistics, synthetic

SPEC = ModelSpec("middling", tuple(range(4)), 4, experts=32, top_k=4, hidden=16, intermediate=32)
GENERATORS = [synthetic.lognormal, synthetic.zipf, synthetic.router]


@pytest.mark.parametrize("generate", GENERATORS)
def test_it_is_labelled_and_the_seed_decides(generate):
    trace = generate(SPEC, 600, seed=3)
    assert trace.origin["synthetic"] is True
    assert trace.origin["generator"] == generate.__name__
    assert trace.origin["seed"] == 3
    assert trace == generate(SPEC, 600, seed=3)
    assert trace.digest != generate(SPEC, 600, seed=4).digest
    assert trace.routes.min() >= 0
    # weights of a pick sum to one and are in the router's order
    assert trace.weights.astype(float).sum(axis=-1) == pytest.approx(1, abs=0.01)
    assert (np.diff(trace.weights.astype(float), axis=-1) <= 0).all()


@pytest.mark.parametrize("generate", GENERATORS)
def test_requests_end_in_decode(generate):
    trace = generate(SPEC, 100, request_tokens=20, decode=0.25)
    assert np.array_equal(trace.request, np.arange(100) // 20)
    assert np.array_equal(trace.phase == DECODE, trace.position >= 15)
    assert generate(SPEC, 0).tokens == 0
    with pytest.raises(InputError, match=r"decode in 0\.\.1"):
        generate(SPEC, 10, decode=1.5)


def test_skew_grows_with_its_knob():
    for generate, knob in ((synthetic.lognormal, "sigma"), (synthetic.zipf, "alpha"), (synthetic.router, "skew")):
        ginis = [np.median(statistics(generate(SPEC, 4000, **{knob: value})).gini) for value in (0.0, 0.7, 1.4)]
        assert ginis == sorted(ginis)
        if knob != "skew":
            assert ginis[0] < 0.05


def test_independent_draws_have_skew_and_nothing_else():
    found = statistics(synthetic.lognormal(SPEC, 20_000))
    assert found.coactivation_bits.max() < 0.05
    assert found.adjacent_bits[1:].max() < 0.05
    assert found.reuse == pytest.approx(found.reuse_iid, abs=0.01)


def test_the_router_has_the_structure_of_real_ones():
    """Ranges of a small real model: max/mean 2-6, Gini .25-.5, MI .4-.8 bits, reuse .2-.6."""
    found = statistics(synthetic.router(ModelSpec.preset("gpt-oss-20b"), 20_000, seed=1))
    assert 2 < np.median(found.max_over_mean) < 6
    assert 0.25 < np.median(found.gini) < 0.5
    assert 0.3 < np.median(found.adjacent_bits[1:]) < 0.8
    assert 0.2 < np.median(found.reuse) < 0.6
    assert np.median(found.reuse) > 1.5 * np.median(found.reuse_iid)
    assert 0.05 < np.median(found.domain_bits) < 0.3
    assert np.median(found.coactivation_bits) > 0.3


def test_a_router_needs_a_domain():
    with pytest.raises(InputError, match="at least 1 domain"):
        synthetic.router(SPEC, 10, domains=0)


@pytest.mark.parametrize("generate", GENERATORS)
def test_a_negative_seed_is_refused(generate):
    with pytest.raises(InputError, match=r"seed: expected a whole number from 0 up, got -1"):
        generate(SPEC, 8, seed=-1)
