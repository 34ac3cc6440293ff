"""Statistics: exact on routing that was made by hand, in range on published traces."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_traces import law, lengths, random_trace, small_spec

from moesim.trace import Trace, describe, read_any, statistics
from moesim.trace.stats import jensen_shannon


def trace_of(*picks, layers=1, experts=4, **columns) -> Trace:
    routes = np.array(picks)[:, None] if layers == 1 else np.array(picks)
    return Trace(small_spec(layers, experts, routes.shape[-1]), routes, **columns)


def test_balanced_loads():
    found = statistics(trace_of([0], [1], [2], [3]))
    assert found.max_over_mean.tolist() == [1.0]
    assert found.gini.tolist() == pytest.approx([0.0])
    assert found.entropy.tolist() == pytest.approx([1.0])


def test_one_busy_expert():
    found = statistics(trace_of(*[[2]] * 7))
    assert found.max_over_mean.tolist() == [4.0]
    assert found.gini.tolist() == pytest.approx([0.75])
    assert found.entropy.tolist() == pytest.approx([0.0])


def test_pairs_that_always_go_together():
    # of six pairs two occur, half of the time each: log2(6 / 2) bits, lift 3
    found = statistics(trace_of([0, 1], [2, 3], [1, 0], [3, 2]))
    assert found.coactivation_bits.tolist() == pytest.approx([np.log2(3)])
    assert found.lift_p99.tolist() == pytest.approx([3.0])


def test_a_layer_that_repeats_the_one_before():
    found = statistics(trace_of(*[[[e], [e]] for e in range(4)], layers=2))
    assert np.isnan(found.adjacent_bits[0])
    assert found.adjacent_bits[1] == pytest.approx(2.0)


def test_reuse_is_between_tokens_of_one_request_whatever_the_order_of_rows():
    # request 0 picks (0 1), (0 2), (3 2): half of its experts are reused; request 1 never
    picks = [[0, 1], [0, 1], [0, 2], [2, 3], [3, 2]]
    found = statistics(trace_of(*picks, request=[0, 1, 0, 1, 0], position=[0, 0, 1, 1, 2]))
    assert found.reuse.tolist() == pytest.approx([(1 + 0 + 1) / 6])
    gap = statistics(trace_of(*picks, request=[0, 1, 0, 1, 0], position=[0, 0, 2, 1, 4]))
    assert gap.reuse.tolist() == [0.0]


def test_divergence_of_domains_and_windows():
    assert jensen_shannon(np.array([1, 0]), np.array([0, 3])) == pytest.approx(1.0)
    assert jensen_shannon(np.array([1, 2]), np.array([10, 20])) == pytest.approx(0.0)
    row = np.arange(400)
    apart = trace_of(*(row // 200 * 2 + row % 2)[:, None], domain=row // 200, domains=("a", "b"))
    found = statistics(apart)
    assert found.domain_bits.tolist() == pytest.approx([1.0])
    # four windows, one step of three between different ones
    assert found.drift_bits.tolist() == pytest.approx([1 / 3])
    too_small = statistics(apart.select(row[150:250]))
    assert np.isnan([too_small.domain_bits, too_small.drift_bits]).all()


@law
@given(lengths=lengths, seed=st.integers(0, 5))
def test_statistics_stay_in_their_ranges(lengths, seed):
    trace = random_trace(seed, lengths)
    found = statistics(trace)
    E, K = trace.spec.experts, trace.spec.top_k
    assert ((found.max_over_mean >= 1) & (found.max_over_mean <= E / K + 1e-9)).all()
    assert ((found.gini >= -1e-12) & (found.gini <= 1)).all()
    assert ((found.entropy >= 0) & (found.entropy <= 1 + 1e-12)).all()
    assert (found.coactivation_bits >= -1e-12).all()
    assert found.adjacent_bits[1] >= -1e-9
    assert np.nanmin(np.r_[found.reuse, 0]) >= 0
    assert np.nanmax(np.r_[found.reuse, 0]) <= 1


def test_counts_tell_loads_only(trace):
    counted = statistics(Trace(trace.spec, given_counts=trace.counts))
    assert np.array_equal(counted.gini, statistics(trace).gini)
    assert np.isnan([counted.reuse, counted.lift_p99, counted.adjacent_bits]).all()
    rows = {row["statistic"]: row["median"] for row in counted.rows()}
    assert rows["reuse"] is None
    assert rows["gini"] == pytest.approx(np.median(counted.gini))


def test_rows_by_layer(trace):
    rows = statistics(trace).layer_rows()
    assert [row["layer"] for row in rows] == [0, 1]
    assert rows[0]["adjacent_bits"] is None
    assert rows[1]["gini"] == statistics(trace).gini[1]


def test_a_description_is_plain_data_with_stable_keys(trace):
    found = describe(trace)
    assert json.loads(json.dumps(found)) == found
    assert list(found) == [
        "kind",
        "content",
        "model",
        "layers",
        "experts",
        "top_k",
        "tokens",
        "steps",
        "requests",
        "rows_by_phase",
        "rows_by_domain",
        "weights",
        "recorded_steps",
        "recorded_sources",
        "empty_picks",
        "unpicked_layers",
        "synthetic",
        "origin",
        "digest",
        "statistics",
    ]
    assert found["rows_by_phase"] == {"prefill": 16, "decode": 24}
    assert found["rows_by_domain"] == {"law": 20, "code": 20}
    assert found["synthetic"]
    assert found["recorded_steps"]
    assert found["recorded_sources"]
    counted = describe(Trace(trace.spec, given_counts=trace.counts))
    assert (counted["content"], counted["tokens"], counted["requests"]) == ("counts", 40, 0)
    empty = describe(trace.select([]))
    assert json.loads(json.dumps(empty, allow_nan=False)) == empty


def test_dropped_picks_are_left_out(trace):
    routes = trace.routes.copy()
    routes[:, 0] = -1
    found = statistics(dataclasses.replace(trace, routes=routes))
    assert np.isnan([found.gini[0], found.entropy[0], found.reuse[0], found.lift_p99[0]]).all()
    assert np.isfinite([found.gini[1], found.reuse[1]]).all()


def test_published_traces_have_the_published_statistics(shared_data):
    """Values of gpt-oss-20b on the same file, and of two domains of DeepSeek-V2-Lite."""
    folder = shared_data / "routing"
    oss = statistics(read_any(folder / "gpt_oss_20b_decode.npz", model="gpt-oss-20b", phase="decode"))
    assert np.quantile(oss.gini, [0, 0.5, 1]) == pytest.approx([0.25, 0.39, 0.51], abs=0.02)
    assert np.quantile(oss.entropy, [0, 0.5, 1]) == pytest.approx([0.87, 0.92, 0.97], abs=0.01)
    assert np.quantile(oss.max_over_mean, [0, 0.5, 1]) == pytest.approx([1.91, 2.51, 3.90], rel=0.05)
    assert oss.reuse[[0, 6, 12, 18, 23]] == pytest.approx([0.20, 0.39, 0.60, 0.37, 0.56], abs=0.02)
    assert oss.reuse_iid.min() == pytest.approx(0.15, abs=0.01)
    assert oss.reuse_iid.max() == pytest.approx(0.25, abs=0.01)
    assert 0.40 < np.median(oss.adjacent_bits[1:]) < 0.58
    assert 0.45 < np.median(oss.coactivation_bits) < 0.82
    assert 3.8 < np.median(oss.lift_p99) < 9
    lite = read_any(folder / "deepseek_v2_lite_intent_law.npz", model="deepseek-v2-lite")
    for domain, most, gini in (("intent", 4.0, 0.41), ("law", 3.3, 0.31)):
        found = statistics(lite.of_domain(domain))
        assert np.median(found.max_over_mean) == pytest.approx(most, abs=0.05)
        assert np.median(found.gini) == pytest.approx(gini, abs=0.01)
    both = statistics(lite)
    assert 0.10 < np.median(both.domain_bits) < 0.20
    assert 0.10 < both.reuse[0] < 0.17
