"""How a solver says how far it is, and hears that it shall stop: for progress bars, anytime curves and stop buttons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A point of the anytime curve.

    Parameters
    ----------
    seconds
        Seconds since the solver began, compilation aside.
    best_s
        Mean seconds of a step on the fitted traffic under the best placement so far.
    stage
        What is being done: ``"baselines"``, ``"search"``, ...
    done
        Share of the work that is done, 0..1, or None where that is not known.
    """

    seconds: float
    best_s: float
    stage: str
    done: float | None = None


Watcher = Callable[[Progress], None]
"""Called with every point of the curve, from the thread that solves or one of its workers; must not block."""

Stop = Callable[[], bool | str]
"""Asked often whether the solver shall return the best so far now; a text says why, for the note of the plan."""
