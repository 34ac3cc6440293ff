"""Captures of transformers models equal what their routers decided, in every family that has another way to route."""

from __future__ import annotations

import numpy as np
import pytest

import moesim
from capture.families import FAMILIES, VOCABULARY, Eavesdropper, tiny, torch


def tokens(sequences: int = 3, length: int = 9, seed: int = 1):
    return torch.randint(3, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(seed))


def picked(routes: np.ndarray) -> list[list[list[int]]]:
    """Experts as [layers][tokens] sorted lists without gaps."""
    return [[sorted(int(e) for e in row if e >= 0) for row in layer] for layer in routes.transpose(1, 0, 2)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_capture_equals_the_decisions_of_the_router(family):
    _, layers, experts, top_k = FAMILIES[family]
    model = tiny(family)
    told = Eavesdropper(family, model)
    with torch.no_grad(), moesim.capture(model) as recorder:
        model(tokens(), use_cache=False)
        model(tokens(2, 5, seed=2), use_cache=False)
        trace = recorder.trace()
    assert trace.spec.experts == experts
    assert trace.spec.top_k == top_k
    if layers is not None:
        assert trace.spec.layer_ids == layers
    expected = [[sorted(e for e in row if e < experts) for row in layer] for layer in told.experts()]
    assert len(expected) == trace.layers
    assert picked(trace.routes) == expected
    assert trace.step.tolist() == [0] * 27 + [1] * 10
    assert trace.request.tolist() == [0] * 9 + [1] * 9 + [2] * 9 + [3] * 5 + [4] * 5
    assert (trace.weights[trace.routes >= 0] != 0).all()


def test_enough_families_are_covered():
    assert len(FAMILIES) >= 15


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "dots1", "glm4_moe"])
def test_the_largest_logits_are_not_what_a_grouped_or_biased_router_picks(family):
    model = tiny(family)
    told = Eavesdropper(family, model)
    with torch.no_grad(), moesim.capture(model) as recorder:
        model(tokens(), use_cache=False)
        routes, _ = recorder.take()
    naive = [[sorted(row) for row in layer] for layer in told.naive(FAMILIES[family][3])]
    pairs = [
        (a, b) for ours, theirs in zip(picked(routes), naive, strict=True) for a, b in zip(ours, theirs, strict=True)
    ]
    wrong = sum(ours != theirs for ours, theirs in pairs)
    assert wrong > len(pairs) / 2
    truth = [[sorted(row) for row in layer] for layer in told.experts()]
    assert picked(routes) == truth


def test_softmax_routers_do_pick_the_largest_logits():
    model = tiny("mixtral")
    told = Eavesdropper("mixtral", model)
    with torch.no_grad(), moesim.capture(model) as recorder:
        model(tokens(), use_cache=False)
        routes, _ = recorder.take()
    assert picked(routes) == [[sorted(row) for row in layer] for layer in told.naive(2)]
