"""Simulating the steps of a model on a cluster: `simulate` returns a `Report`, `chrome_trace` draws its timeline.

The room is callable: ``moesim.simulate(trace, cluster, plan)``, see `moesim.simulate.run.simulate`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moesim.base.rooms import make_callable
from moesim.simulate.report import Bottleneck as Bottleneck
from moesim.simulate.report import Report as Report

if TYPE_CHECKING:
    from moesim.simulate.chrome import chrome_trace as chrome_trace
    from moesim.simulate.chrome import write_chrome_trace as write_chrome_trace
    from moesim.simulate.run import simulate as simulate
    from moesim.simulate.schedules import SCHEDULES as SCHEDULES
    from moesim.simulate.schedules import Schedule as Schedule
    from moesim.simulate.stream import simulate_file as simulate_file
    from moesim.simulate.training import Training as Training

# imported when first used: looking at a report needs no engine
_HOME = {
    "SCHEDULES": "moesim.simulate.schedules",
    "Schedule": "moesim.simulate.schedules",
    "Training": "moesim.simulate.training",
    "chrome_trace": "moesim.simulate.chrome",
    "simulate": "moesim.simulate.run",
    "simulate_file": "moesim.simulate.stream",
    "write_chrome_trace": "moesim.simulate.chrome",
}

__all__ = [
    "SCHEDULES",
    "Bottleneck",
    "Report",
    "Schedule",
    "Training",
    "chrome_trace",
    "simulate",
    "simulate_file",
    "write_chrome_trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'moesim.simulate' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


make_callable(__name__)
