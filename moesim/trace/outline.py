"""What a trace file holds, as one pass over it tells and no part of it does alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.base.errors import FormatError, UnknownName
from moesim.trace.batching import why_not_as_recorded
from moesim.trace.parquet import iter_chunks
from moesim.trace.trace import PHASES, Trace


@dataclass(frozen=True)
class Outline:
    """A trace file in a few facts.

    Parameters
    ----------
    origin
        Of the trace.
    phases
        Codes of the phases that it holds, ascending.
    together
        Whether it was recorded what ran together, see :attr:`Trace.has_steps`.
    sources
        Of each phase the smallest and the largest source rank; -1: of some token it is not known.
    ordered
        Of each phase whether its tokens lie in the order of their steps.
    """

    origin: Mapping[str, Any]
    phases: tuple[int, ...]
    together: bool
    sources: Mapping[int, tuple[int, int]]
    ordered: Mapping[int, bool]

    def why_not_as_recorded(self, phase: int, ranks: int) -> str:
        """Return why the steps of a phase cannot be replayed as recorded, empty if they can."""
        if not self.together:
            return "steps were not recorded"
        return why_not_as_recorded(*self.sources[phase], self.origin, ranks)


def outline(path: str | Path) -> Outline:
    """Return what a trace file of tokens holds; memory is bounded by a row group.

    Raises
    ------
    FormatError
        If the file is no complete trace of tokens, or empty.
    """
    sources: dict[int, tuple[int, int]] = {}
    last: dict[int, int] = {}
    ordered: dict[int, bool] = {}
    together = False
    origin: Mapping[str, Any] = {}
    end: tuple[int, int] | None = None
    for part in iter_chunks(path, layers=(0,)):
        if not part.rows:
            continue
        origin, together = part.origin, together or part.has_steps or (end is not None and _goes_on(*end, part))
        end = int(part.step[-1]), int(part.request[-1])
        for code in np.unique(part.phase).tolist():
            mine = part.phase == code
            step, source = part.step[mine], part.source[mine]
            low, high = sources.get(code, (int(source[0]), -1))
            sources[code] = min(low, int(source.min())), max(high, int(source.max()))
            rising = step[0] >= last.get(code, step[0]) and bool((np.diff(step) >= 0).all())
            ordered[code] = bool(ordered.get(code, True) and rising)
            last[code] = int(step[-1])
    if not sources:
        raise FormatError(path, "", "expected tokens, found none; record again")
    return Outline(origin, tuple(sorted(sources)), together, sources, ordered)


def phase_of(held: Outline, path: str | Path, phase: str | None) -> int:
    """Return the code of the phase that is asked for, or else of the first that the file holds.

    Raises
    ------
    UnknownName
        If there is no such phase.
    FormatError
        If the file holds no token of it.
    """
    if phase is not None and phase not in PHASES:
        raise UnknownName("phase", phase, PHASES)
    code = held.phases[0] if phase is None else PHASES.index(phase)
    if code not in held.phases:
        there = " and ".join(PHASES[one] for one in held.phases)
        raise FormatError(path, "phase", f"holds {there} tokens, none of {phase}; give a phase that it holds")
    return code


def _goes_on(step: int, request: int, part: Trace) -> bool:
    """Return whether the step that a part ended with goes on in the next one with another request."""
    return bool((part.request[part.step == step] != request).any())
