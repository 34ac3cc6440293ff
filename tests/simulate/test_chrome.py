"""Timelines as Chrome trace files: the rules that Perfetto and chrome://tracing hold them to."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from moesim.base.errors import InputError
from moesim.simulate import Report, chrome_trace, simulate, write_chrome_trace

from . import worlds


def report(schedule: str = "two-batch", **options: object) -> Report:
    world = worlds.world(0)
    return simulate(world.batches, world.cluster, world.placement, schedule=schedule, **({"spans": True} | options))


@pytest.fixture(scope="module")
def two_batches() -> Report:
    return report()


def test_every_event_has_what_its_kind_needs(two_batches: Report) -> None:
    data = chrome_trace(two_batches)
    assert set(data) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert data["displayTimeUnit"] in ("ms", "ns")
    for event in data["traceEvents"]:
        assert type(event["pid"]) is int
        assert type(event["tid"]) is int
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            key = "sort_index" if event["name"].endswith("sort_index") else "name"
            assert event["name"] in {"process_name", "process_sort_index", "thread_name", "thread_sort_index"}
            assert set(event["args"]) == {key}
        else:
            assert event["ph"] == "X"
            assert event["name"]
            assert event["cat"]
            assert event["ts"] >= 0
            assert event["dur"] > 0


def test_slices_lie_in_named_threads_of_named_nodes_and_do_not_overlap(two_batches: Report) -> None:
    events = chrome_trace(two_batches)["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    threads = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in slices} == threads
    assert {e["pid"] for e in events if e["name"] == "process_name"} == {pid for pid, _ in threads}
    for thread in threads:
        ours = sorted((e["ts"], e["ts"] + e["dur"]) for e in slices if (e["pid"], e["tid"]) == thread)
        # a viewer nests slices that overlap; rounding to microseconds may cost a picosecond
        assert all(start >= end - 1e-6 for (_, end), (start, _) in pairwise(ours))


def test_times_are_microseconds_and_steps_follow_one_another(two_batches: Report) -> None:
    slices = [event for event in chrome_trace(two_batches)["traceEvents"] if event["ph"] == "X"]
    whole_us = max(event["ts"] + event["dur"] for event in slices)
    assert whole_us == pytest.approx(two_batches.step_s.sum() * 1e6)
    second = min(event["ts"] for event in slices if event["args"]["step"] == 1)
    assert second == pytest.approx(two_batches.step_s[0] * 1e6)


def test_layers_are_those_of_the_decoder(two_batches: Report) -> None:
    names = {event["name"] for event in chrome_trace(two_batches)["traceEvents"] if event["ph"] == "X"}
    assert {"dispatch L1", "experts L2"} <= names


def test_only_the_steps_asked_for_are_kept() -> None:
    some = report(spans=[1])
    assert set(some.spans["step"].tolist()) == {1}
    assert np.isclose(some.spans["stop_s"].max(), some.step_s[1])


def test_the_file_is_strict_json(two_batches: Report, tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    write_chrome_trace(two_batches, path)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == chrome_trace(two_batches)


def test_without_spans_there_is_no_timeline() -> None:
    with pytest.raises(InputError, match="simulate with spans=True"):
        chrome_trace(report(spans=False))
