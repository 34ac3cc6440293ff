"""Report: what its numbers mean, checked by hand."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest

from moesim.base.errors import InputError
from moesim.simulate import Bottleneck, Report
from moesim.simulate.phases import PHASES
from moesim.simulate.report import max_over_mean


def make(**changes: object) -> Report:
    """Two steps of 1 and 3 seconds on two ranks, two layers, two links, two nodes."""
    nothing = np.zeros((2, 2))
    values = {
        "facts": {"model": "m", "topology": "t", "policy": "nearest", "layer_ids": [3, 4]},
        "step_s": [1.0, 3.0],
        "step_tokens": [10, 30],
        "seen": [False, True],
        "busy_s": dict.fromkeys(PHASES, nothing) | {"experts": np.array([[1.0, 0.5], [0.5, 0.5]])},
        "wait_s": np.array([[0.0, 0.5], [0.0, 0.5]]),
        "critical_s": {
            "attention": nothing + 0.125,
            "shared": nothing,
            "dispatch": nothing + 0.25,
            "experts": np.array([[1.0, 0.0], [0.5, 0.0]]),
            "combine": nothing + 0.25,
        },
        "tokens": np.array([[30.0, 10.0], [20.0, 20.0]]),
        "batch_imbalance": 1.5,
        "link_bytes": [4e9, 2e9],
        "link_name": ("a->b", "b->a"),
        "link_bandwidth": [4e9, 1e9],
        "node_bytes": np.array([[5.0, 3.0], [1.0, 7.0]]),
        "where": Bottleneck("all-to-all", 0.5, 41, 37, "node4.nic5->rail5", 112),
        "rank_node": [0, 1],
        "notes": ("resampled: 3 times",),
        "sources": {"b": "assumed: 2", "a": "measured: 1"},
    }
    return Report(**{**values, **changes})  # type: ignore[arg-type]


def test_times() -> None:
    report = make()
    assert report.mean_step_s == 2.0
    assert report.p50_step_s == 2.0
    assert report.p99_step_s == pytest.approx(2.98)
    assert report.tokens_per_s == 10.0
    assert report.all_to_all_s == 1.0
    assert report.compute_s == 0.75
    assert report.attention_s == 0.25
    assert report.mean_wait_s == 0.25


def test_loads_and_bytes() -> None:
    report = make()
    assert report.imbalance == (1.5 + 1.0) / 2
    assert report.cross_node_bytes == 2.0
    np.testing.assert_array_equal(report.link_utilisation, [0.25, 0.5])
    np.testing.assert_allclose(report.layer_split_s["experts"], [0.375, 0.25])
    np.testing.assert_allclose(report.layer_split_s["wait"], [0.125, 0.125])


def test_an_idle_layer_counts_as_balanced() -> None:
    np.testing.assert_array_equal(max_over_mean(np.array([[0.0, 0.0], [1.0, 3.0]])), [1.0, 1.5])


def test_the_bottleneck_is_a_place() -> None:
    assert make().bottleneck == "layer 41, rank 37, node4.nic5->rail5, expert 112 (all-to-all, 50%)"
    compute = dataclasses.replace(make().where, part="experts", link="")
    assert str(compute) == "layer 41, rank 37, expert 112 (experts, 50%)"


def test_plain_data_is_json_with_stable_keys() -> None:
    data = make().to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert list(data) == [
        "schema", "model", "topology", "policy", "layer_ids", "steps", "tokens", "step_s", "p50_step_s", "p99_step_s",
        "all_to_all_s", "compute_s", "attention_s", "wait_s", "tokens_per_s", "model_step_s",
            "model_tokens_per_s", "tokens_per_s_per_gpu", "dropped", "imbalance", "batch_imbalance",
        "cross_node_bytes", "bottleneck", "seen_steps", "step_times_s", "layers", "links", "notes", "sources",
    ]  # fmt: skip
    assert data["links"][0] == {"name": "b->a", "utilisation": 0.5}
    assert list(data["sources"]) == ["a", "b"]


def test_the_summary_fits_a_screen_and_has_units() -> None:
    text = make().summary()
    assert len(text.splitlines()) < 30
    assert max(map(len, text.splitlines())) <= 120
    assert "step           2 s                p50 2 s, p99 2.98 s" in text
    assert "all-to-all   1 s                50.0% of the critical path" in text
    assert "seen before    1 of 2 steps" in text
    assert "busiest link   50.0%              b->a" in text
    assert "note: resampled: 3 times" in text


def test_a_report_survives_pickling_sealed() -> None:
    again = pickle.loads(pickle.dumps(make()))
    assert again.to_dict() == make().to_dict()
    assert not again.step_s.flags.writeable
    assert not again.busy_s["experts"].flags.writeable


def test_shapes_are_checked() -> None:
    with pytest.raises(InputError, match="at least one step"):
        make(step_s=[], step_tokens=[], seen=[])
    with pytest.raises(InputError, match=r"Report\.seen: expected 2 steps, got 1"):
        make(seen=[True])
    with pytest.raises(InputError, match=r"Report\.busy_s: expected the phases"):
        make(busy_s={"experts": np.zeros((2, 2))})
    with pytest.raises(InputError, match=r"Report\.critical_s\['attention'\]: expected axes \[layers, ranks\]"):
        make(critical_s=dict.fromkeys(PHASES, np.zeros((2, 3))))


def test_reports_are_compared_without_an_error():
    # arrays have no single truth: a report equals itself, and `to_dict` compares what two of them say
    one, other = make(), make()
    assert one == one
    assert one != other
    assert one.to_dict() == other.to_dict()
