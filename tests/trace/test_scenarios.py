"""Scenarios W0 to W7: labelled synthetic, and as imbalanced as their names say under a contiguous placement."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.base.errors import InputError, UnknownName
from moesim.spec import ModelSpec
from moesim.trace.scenarios import SCENARIOS, scenario

SPEC = ModelSpec("middling", tuple(range(3)), 3, experts=32, top_k=2, hidden=16, intermediate=32)
RANKS = 8


def make(name: str, tokens: int = 8192, **options):
    return scenario(name, SPEC, tokens, ranks=RANKS, step_tokens=512, **options)


def rank_loads(trace) -> np.ndarray:
    """Share of picks of each rank, [steps, layers, ranks]."""
    loads = trace.counts.reshape(trace.steps, 3, RANKS, -1).sum(axis=-1)
    return loads / loads.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("number", SCENARIOS)
def test_it_is_labelled_seeded_and_known_by_number_and_name(number):
    trace = make(number, 1024, seed=3)
    assert trace.origin["synthetic"] is True
    assert trace.origin["scenario"] == f"{number} {SCENARIOS[number]}"
    assert trace == make(SCENARIOS[number], 1024, seed=3)
    assert trace.digest != make(number, 1024, seed=4).digest
    assert trace.has_steps
    assert make(number, 0).tokens == 0


def test_balanced():
    assert rank_loads(make("W0")).mean(axis=0) == pytest.approx(1 / RANKS, abs=0.01)


def test_a_hot_set_differs_by_layer_and_a_hot_rank_does_not():
    hot_set, hot_rank, spread = (make(name).loads for name in ("W1", "W2", "W3"))
    # 4 of 32 experts take half of the first picks
    for loads in (hot_set, hot_rank, spread):
        ordered = np.sort(loads, axis=1)
        assert (ordered[:, -4:].sum(axis=1) > 0.35 * ordered.sum(axis=1)).all()
        assert ordered[:, -4:].min() > 2 * ordered[:, :-4].max()
    hottest = np.sort(np.argsort(hot_set, axis=1)[:, -4:], axis=1)
    assert not np.array_equal(hottest[0], hottest[1])
    assert rank_loads(make("W2"))[..., 0].min() > 0.3
    # one expert on every other rank: no rank has more than its hot expert and its share of the rest
    assert rank_loads(make("W3")).mean(axis=0).max() < 0.25


def test_ragged_sources_send_unequal_numbers_of_tokens():
    trace = make("W4")
    sent = np.bincount(trace.source, minlength=RANKS)
    assert (np.diff(sent) < 0).all()
    assert sent[0] == pytest.approx(8 * sent[7], rel=0.1)
    assert rank_loads(trace).mean(axis=0) == pytest.approx(1 / RANKS, abs=0.01)
    assert len(set(np.bincount(make("W0").source))) == 1


def test_the_last_rank_has_nothing_to_do():
    loads = rank_loads(make("W5"))
    assert loads[..., -1].max() == 0
    assert loads[..., :-1].min() > 0


def test_the_hotspot_rotates_and_bursts_pass():
    assert rank_loads(make("W6")).argmax(axis=2).tolist() == [[step % RANKS] * 3 for step in range(16)]
    burst = rank_loads(make("W7")).max(axis=2)
    assert (burst[[7, 15]] > 0.3).all()
    assert np.delete(burst, [7, 15], axis=0).max() < 0.2


def test_what_cannot_be_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'hot-rank'"):
        make("hot-rnk")
    with pytest.raises(InputError, match="ranks that divide the 32 experts"):
        scenario("W0", SPEC, 10, ranks=5)
    with pytest.raises(InputError, match="share between 0 and 1"):
        make("W1", share=1.0)
    with pytest.raises(InputError, match="seed: expected a whole number from 0 up"):
        make("W1", seed=-1)
    wide = ModelSpec("wide", (0,), 1, experts=4, top_k=3, hidden=1, intermediate=1)
    with pytest.raises(InputError, match="a token picks 3 of the 2 experts of other ranks"):
        scenario("W5", wide, 10, ranks=2)
