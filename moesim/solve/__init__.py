"""Planning: where every expert lives and how many copies it has, with a proven bound beside every answer.

:func:`solve` runs a solver by name, verifies what it returns, scores it and wraps it in a :class:`Plan`. The room is
callable: ``moesim.solve(trace, cluster, slots_per_rank=...)``, see :func:`moesim.solve.planning.solve`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moesim.base.rooms import make_callable

if TYPE_CHECKING:
    from moesim.solve.constraints import Constraints as Constraints
    from moesim.solve.objective import Objective as Objective
    from moesim.solve.plan import Plan as Plan
    from moesim.solve.planning import solve as solve
    from moesim.solve.problem import SOLVERS as SOLVERS
    from moesim.solve.problem import Problem as Problem
    from moesim.solve.problem import takes as takes

# imported when first used: numba is not needed to read a plan
_HOME = {
    "Constraints": "moesim.solve.constraints",
    "Objective": "moesim.solve.objective",
    "Plan": "moesim.solve.plan",
    "Problem": "moesim.solve.problem",
    "SOLVERS": "moesim.solve.problem",
    "solve": "moesim.solve.planning",
    "takes": "moesim.solve.problem",
}

__all__ = ["SOLVERS", "Constraints", "Objective", "Plan", "Problem", "solve", "takes"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'moesim.solve' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


make_callable(__name__)
