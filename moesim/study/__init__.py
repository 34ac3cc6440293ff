"""Studies: where solvers meet the simulator."""

from moesim.study.compare import DEFAULT_SOLVERS, Comparison, Row, compare
from moesim.study.windows import PARTS, costs_of, fewest_slots, part_of, steps_of

__all__ = [
    "DEFAULT_SOLVERS",
    "PARTS",
    "Comparison",
    "Row",
    "compare",
    "costs_of",
    "fewest_slots",
    "part_of",
    "steps_of",
]
