"""The traces in `traces/` are what their README says."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.moe.corpus import DOMAINS
from moesim.moe.spec import spec_of
from moesim.moe.weights import load_model
from moesim.trace import DECODE, PREFILL, Trace, statistics

NAMES = ("bundled-moe-fit", "bundled-moe-eval")


@pytest.fixture(scope="module")
def traces(root) -> list[Trace]:
    return [Trace.read(root / "traces" / f"{name}.parquet") for name in NAMES]


def test_they_hold_enough_tokens_in_few_bytes(root, traces):
    assert sum(trace.tokens for trace in traces) >= 200_000
    assert sum((root / "traces" / f"{name}.parquet").stat().st_size for name in NAMES) <= 20 * 2**20


def test_they_were_captured_from_the_bundled_weights(traces):
    bundle = load_model()
    assert [trace.origin["part"] for trace in traces] == ["fit", "eval"]
    for trace in traces:
        assert trace.spec == spec_of(bundle.model.config)
        assert trace.origin["weights_digest"] == bundle.digest
        assert not trace.origin["synthetic"]


def test_each_has_all_domains_and_both_phases_in_mixed_steps(traces):
    for trace in traces:
        assert trace.domains == DOMAINS
        assert set(np.unique(trace.domain)) == set(range(8))
        assert 0.2 < (trace.phase == DECODE).mean() < 0.5
        assert (trace.phase[trace.position == 0] == PREFILL).all()
        assert trace.has_steps


def test_no_layer_is_collapsed_or_perfectly_balanced(traces):
    for trace in traces:
        figures = statistics(trace)
        assert (figures.max_over_mean > 1.3).all()
        assert (figures.max_over_mean < 8).all()
        assert (trace.loads > 0).mean() > 0.99
