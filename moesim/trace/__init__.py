"""Routing traces: which experts every token picked in every layer, where and when.

`Trace` is the type, `make_batches` turns it into steps that can be dispatched, `read_any` and `import_any` read foreign
files, `draw_tokens` makes tokens where only counts were recorded, `TraceWriter` streams a capture to disk, `describe`
and `statistics` say what a trace is like.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moesim.trace.trace import DECODE as DECODE
from moesim.trace.trace import PHASES as PHASES
from moesim.trace.trace import PREFILL as PREFILL
from moesim.trace.trace import TRAIN as TRAIN
from moesim.trace.trace import Trace as Trace

if TYPE_CHECKING:
    from moesim.trace.batches import Batches as Batches
    from moesim.trace.batching import make_batches as make_batches
    from moesim.trace.drawn import draw_tokens as draw_tokens
    from moesim.trace.formats import TRACE_FORMATS as TRACE_FORMATS
    from moesim.trace.formats import import_any as import_any
    from moesim.trace.formats import read_any as read_any
    from moesim.trace.parquet import TraceWriter as TraceWriter
    from moesim.trace.parquet import iter_chunks as iter_chunks
    from moesim.trace.stats import describe as describe
    from moesim.trace.stats import statistics as statistics

# imported when first used: pyarrow and numba are not needed to look at a trace in memory
_HOME = {
    "Batches": "moesim.trace.batches",
    "make_batches": "moesim.trace.batching",
    "draw_tokens": "moesim.trace.drawn",
    "TRACE_FORMATS": "moesim.trace.formats",
    "import_any": "moesim.trace.formats",
    "read_any": "moesim.trace.formats",
    "TraceWriter": "moesim.trace.parquet",
    "iter_chunks": "moesim.trace.parquet",
    "describe": "moesim.trace.stats",
    "statistics": "moesim.trace.stats",
}

__all__ = [
    "DECODE",
    "PHASES",
    "PREFILL",
    "TRACE_FORMATS",
    "TRAIN",
    "Batches",
    "Trace",
    "TraceWriter",
    "describe",
    "draw_tokens",
    "import_any",
    "iter_chunks",
    "make_batches",
    "read_any",
    "statistics",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'moesim.trace' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
