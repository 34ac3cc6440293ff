"""Which tokens of the routing trace a served request runs: it draws a recorded request and replays its tokens."""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.trace import DECODE, Trace
from moesim.trace.packing import ragged_range


class TokenSource:
    """Rows of a trace for the tokens of served requests.

    Every served request draws one recorded request, uniformly. Its prompt runs through the recorded prompt, its answer
    through the recorded answer (through the prompt, where no decode was recorded); a longer one begins again.

    Parameters
    ----------
    trace
        Routing, token by token.
    requests
        Number of served requests.
    seed
        Draws recorded requests.
    """

    def __init__(self, trace: Trace, requests: int, seed: int = 0) -> None:
        if trace.routes is None or not trace.rows:
            raise InputError("serving: the trace holds counts only, or nothing; tokens need routes")
        self.trace = trace
        decode = trace.phase == DECODE
        self.recorded, group = np.unique(trace.request, return_inverse=True)
        self.order = np.lexsort((trace.position, decode, group))
        count = len(self.recorded)
        prompts = np.bincount(group[~decode], minlength=count)
        answers = np.bincount(group[decode], minlength=count)
        begin = np.cumsum(prompts + answers) - (prompts + answers)
        nothing_said = answers == 0
        nothing_asked = prompts == 0
        self.first = np.stack([begin, np.where(nothing_said, begin, begin + prompts)])
        self.count = np.stack([np.where(nothing_asked, answers, prompts), np.where(nothing_said, prompts, answers)])
        self.drawn = np.random.default_rng([seed, 7]).integers(0, count, requests)
        self.notes: tuple[str, ...] = ()
        if nothing_said.all():
            self.notes = ("the tokens that are served hold no answers (decode): answers are routed as prompts were",)

    def rows(self, request: Array, start: Array, count: Array, answer: Array) -> Array:
        """Return trace rows, int64 [sum of count].

        Parameters
        ----------
        request, start, count
            Served request, first token and number of tokens of each run; an answer counts from its own start.
        answer
            Whether each run is part of an answer, bool.
        """
        drawn, which = self.drawn[request], answer.astype(np.int64)
        first, length = self.first[which, drawn], self.count[which, drawn]
        place = ragged_range(start, count) % np.repeat(length, count)
        rows: Array = self.order[np.repeat(first, count) + place]
        return rows

    def prompt_rows(self, request: int) -> Array:
        """Return the trace rows of the recorded prompt that a request drew."""
        drawn = self.drawn[request]
        rows: Array = self.order[self.first[0, drawn] : self.first[0, drawn] + self.count[0, drawn]]
        return rows
