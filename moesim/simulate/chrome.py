"""Timelines as Chrome trace events, which ui.perfetto.dev and chrome://tracing open.

A process is a node, a thread is a stream of a rank, a slice is a phase; times are
microseconds and steps follow one another.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.errors import InputError
from moesim.base.files import write_text
from moesim.simulate.phases import PHASES
from moesim.simulate.report import Report

_STREAMS: Final = ("compute", "comm", "shared")
_STREAM_OF: Final = {"attention": 0, "experts": 0, "dispatch": 1, "combine": 1, "shared": 2}


def chrome_trace(report: Report) -> dict[str, Any]:
    """Return the timeline of a report as Chrome trace data.

    Parameters
    ----------
    report
        A report that was asked for spans.

    Raises
    ------
    InputError
        If the report holds no spans.
    """
    if report.spans is None or not len(report.spans):
        raise InputError("chrome trace: the report holds no spans; simulate with spans=True")
    begin_s = np.concatenate([[0.0], np.cumsum(report.step_s)])
    layer_ids = report.facts.get("layer_ids", range(len(report.tokens)))
    threads = {(int(span["rank"]), _STREAM_OF[PHASES[span["phase"]]]) for span in report.spans}
    events = _names(report, threads)
    for span in report.spans:
        phase, rank, layer = PHASES[span["phase"]], int(span["rank"]), int(span["layer"])
        start_s, stop_s = float(span["start_s"]), float(span["stop_s"])
        events.append(
            {
                "name": f"{phase} L{layer_ids[layer]}",
                "cat": phase,
                "ph": "X",
                "ts": (begin_s[span["step"]] + start_s) * 1e6,
                "dur": (stop_s - start_s) * 1e6,
                "pid": int(report.rank_node[rank]),
                "tid": rank * len(_STREAMS) + _STREAM_OF[phase],
                "args": {
                    "step": int(span["step"]),
                    "layer": int(layer_ids[layer]),
                    "micro_batch": int(span["micro_batch"]),
                    "wait_us": float(span["wait_s"]) * 1e6,
                },
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": _about(report)}


def write_chrome_trace(report: Report, path: str | Path) -> None:
    """Write the timeline of a report as a Chrome trace file, atomically.

    Raises
    ------
    InputError
        If the report holds no spans or the file cannot be written.
    """
    write_text(path, json.dumps(chrome_trace(report), allow_nan=False))


def _names(report: Report, threads: set[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return the metadata events that name processes and threads and put them in order."""
    events: list[dict[str, Any]] = []

    def name(kind: str, pid: int, tid: int, **args: object) -> None:
        events.append({"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": args})

    for node in sorted({int(report.rank_node[rank]) for rank, _ in threads}):
        name("process_name", node, 0, name=f"node {node}")
        name("process_sort_index", node, 0, sort_index=node)
    for rank, stream in sorted(threads):
        node, tid = int(report.rank_node[rank]), rank * len(_STREAMS) + stream
        name("thread_name", node, tid, name=f"rank {rank} {_STREAMS[stream]}")
        name("thread_sort_index", node, tid, sort_index=tid)
    return events


def _about(report: Report) -> dict[str, str]:
    kinds = (str, int, float)
    return {key: str(value) for key, value in sorted(report.facts.items()) if isinstance(value, kinds)}
