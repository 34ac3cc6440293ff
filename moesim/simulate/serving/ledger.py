"""The ledger of a serving run: what became of every request, and what every step was."""

from __future__ import annotations

import numpy as np

from moesim.simulate.serving.arrivals import Arrivals


class Ledger:
    """What happens, written down as it happens.

    Parameters
    ----------
    arrivals
        The requests.
    """

    def __init__(self, arrivals: Arrivals) -> None:
        self.requests = n = len(arrivals)
        self.prompt, self.output = arrivals.prompt, arrivals.output
        self.generated = np.zeros(n, np.int64)
        self.recomputed = np.zeros(n, np.int64)
        self.first_s = np.full(n, np.nan)
        self.finish_s = np.full(n, np.nan)
        self.rejected = np.zeros(n, bool)
        self.preempted = 0
        self.steps: dict[str, list[tuple[float, float, int, int, int]]] = {}

    def said(self, request: int, now: float) -> None:
        """Note that a prompt is done and its next token there."""
        if self.generated[request] == 0:
            self.first_s[request] = now
        self.generated[request] += 1

    def step(self, pool: str, end: float, seconds: float, decode: int, prefill: int, waiting: int) -> None:
        """Note a step: its end, duration, tokens of both phases, and the requests that wait."""
        self.steps.setdefault(pool, []).append((end, seconds, decode, prefill, waiting))
