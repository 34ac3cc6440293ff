"""Studies: where solvers meet the simulator."""

from moesim.study.compare import DEFAULT_SOLVERS, Comparison, compare, facts_of, gather
from moesim.study.judge import Judged, Row, adopt, judge
from moesim.study.windows import PARTS, costs_of, fewest_slots, part_of, steps_of, steps_of_parts

__all__ = [
    "DEFAULT_SOLVERS",
    "PARTS",
    "Comparison",
    "Judged",
    "Row",
    "adopt",
    "compare",
    "costs_of",
    "facts_of",
    "fewest_slots",
    "gather",
    "judge",
    "part_of",
    "steps_of",
    "steps_of_parts",
]
