"""The anytime curve of a search that improves layers side by side: scores what has been found, now and then."""

from __future__ import annotations

import threading
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moesim.placement import Placement
from moesim.solve.objective import score
from moesim.solve.problem import Problem

_EVERY_S: Final = 0.5
"""Least seconds between two points."""
_SHARE: Final = 0.2
"""Most of the time that a point may take: looking must not cost the search."""


class Anytime:
    """Follows layers that threads improve; never changes what they find.

    Parameters
    ----------
    problem
        Whose watcher is told.
    experts
        The placement that the search begins with, int32 [layers, ranks, slots].
    best_s
        Its mean seconds of a step, or those of something better that is at hand.
    tasks
        Pieces of work in all, one for each weight and layer.
    """

    def __init__(self, problem: Problem, experts: NDArray[np.int32], best_s: float, tasks: int) -> None:
        self._problem, self._best_s = problem, best_s
        self._now: dict[int, NDArray[np.int32]] = {}
        self._start = experts
        self._done = np.zeros(tasks)
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def follow(self, task: int, run: int, layer: int, done: float, slots: NDArray[np.int32]) -> bool:
        """Take in the best slots [ranks, slots] of a layer in a run so far; return whether to stop."""
        if self._problem.watch is None:
            return self._problem.stopped()
        with self._lock:
            self._now.setdefault(run, self._start.copy())[layer] = slots
            self._done[task] = done
            began = time.monotonic()
            if began < self._next:
                return self._problem.stopped()
            self._next = np.inf
            snapshot = self._now[run].copy()
        found = Placement(snapshot, self._problem.experts)
        mean_s = score(
            self._problem.batches, found, self._problem.costs, self._problem.policy, self._problem.seed
        ).mean_s
        with self._lock:
            self._best_s = min(self._best_s, mean_s)
            took = time.monotonic() - began
            self._next = time.monotonic() + max(_EVERY_S, took / _SHARE)
            self._problem.tell("search", self._best_s, float(self._done.mean()))
        return self._problem.stopped()
