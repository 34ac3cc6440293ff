"""moesim: cluster simulator and placement optimizer for Mixture-of-Experts expert parallelism."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moesim.base.version import VERSION

if TYPE_CHECKING:
    from moesim.base.errors import MoesimError as MoesimError
    from moesim.capture.hooks import capture as capture
    from moesim.cluster import Cluster as Cluster
    from moesim.costs import Costs as Costs
    from moesim.placement import Placement as Placement
    from moesim.simulate import Report as Report
    from moesim.simulate import simulate as simulate
    from moesim.solve import Plan as Plan
    from moesim.solve import solve as solve
    from moesim.spec import ModelSpec as ModelSpec
    from moesim.study import compare as compare
    from moesim.trace import Trace as Trace

__version__ = VERSION

# where each public name lives; imported when first used, so that `import moesim` costs milliseconds
_HOME = {
    "Cluster": "moesim.cluster",
    "Costs": "moesim.costs",
    "ModelSpec": "moesim.spec",
    "MoesimError": "moesim.base.errors",
    "Placement": "moesim.placement",
    "Plan": "moesim.solve",
    "Report": "moesim.simulate",
    "Trace": "moesim.trace",
    "capture": "moesim.capture",
    "compare": "moesim.study",
    "simulate": "moesim.simulate",
    "solve": "moesim.solve",
}

__all__ = [
    "Cluster",
    "Costs",
    "ModelSpec",
    "MoesimError",
    "Placement",
    "Plan",
    "Report",
    "Trace",
    "capture",
    "compare",
    "simulate",
    "solve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'moesim' has no attribute {name!r}")
    home = importlib.import_module(_HOME[name])
    # a room that can be called is its verb: importing the room must not change what the name means
    value = home if home.__name__ == f"moesim.{name}" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
