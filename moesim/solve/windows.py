"""Windows of the traffic that a plan is fitted to: runs of consecutive steps, or one window a domain."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from moesim.base.errors import InputError, UnknownName
from moesim.base.units import count
from moesim.trace import Batches, Trace, make_batches

WINDOWS: Final = ("time", "domain")
"""Ways to cut traffic into windows."""
_COUNTED: Final = ("resampled", "dropped", "kept", "independent")
"""Kinds of notes that count tokens."""
MOST_WINDOWS: Final = 8
"""Windows into which steps are cut in time."""


def time_windows(batches: Batches, most: int = MOST_WINDOWS) -> tuple[Batches, ...]:
    """Return runs of consecutive steps of about equal length, at most ``most`` of them."""
    edges = np.linspace(0, len(batches), min(most, len(batches)) + 1).astype(int)
    return tuple(batches.take(slice(a, b)) for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def domain_windows(
    trace: Trace,
    ranks: int,
    *,
    tokens_per_rank: int | Mapping[int, int] | None = None,
    phase: str | None = None,
    seed: int = 0,
    max_steps: int | None = None,
) -> tuple[Batches, ...]:
    """Return the steps of each domain on its own, one window a domain, in the order of ``trace.domains``.

    A step of one domain alone is the far end of drift: real steps mix domains. What plans well for the worst of them
    does not depend on the mix.

    Raises
    ------
    InputError
        If the trace has fewer than two domains, or one of them makes no step.
    """
    held = [code for code in range(len(trace.domains)) if (trace.domain == code).any()]
    if len(held) < 2:
        raise InputError(
            f"windows by domain: the trace of {trace.spec.name} has {len(held)} domain; cut it in time, or import it "
            "with domains"
        )
    windows = []
    told: dict[str, list[str]] = {}
    for code in held:
        rows = np.flatnonzero(trace.domain == code)
        steps = make_batches(
            trace.select(rows), ranks, tokens_per_rank=tokens_per_rank, phase=phase, seed=seed, max_steps=max_steps
        )
        if not len(steps):
            raise InputError(
                f"windows by domain: no step comes of the {count(len(rows), 'token')} of domain "
                f"{trace.domains[code]!r}; give fewer tokens per rank"
            )
        for note in steps.notes:
            # numbers differ from domain to domain, what was done does not
            kind = note.partition(":")[0]
            told.setdefault(f"{kind}, by domain" if kind in _COUNTED else note, []).append(trace.domains[code])
        windows.append(dataclasses.replace(steps, trace=trace, token=rows[steps.token]))
    notes = tuple(
        f"{note}: {', '.join(names) if len(names) < len(held) else 'all'}" if note.endswith("by domain") else note
        for note, names in told.items()
    )
    return tuple(dataclasses.replace(window, notes=notes) for window in windows)


def joined(windows: Sequence[Batches]) -> Batches:
    """Return all steps of windows of one trace, one after the other.

    Raises
    ------
    InputError
        If there is no window, or they are of different traces or numbers of ranks.
    """
    if not windows:
        raise InputError("windows: expected at least one")
    first = windows[0]
    for window in windows[1:]:
        if window.trace is not first.trace and window.trace.digest != first.trace.digest:
            raise InputError("windows: expected steps of one trace; batch parts of the same trace")
        if window.ranks != first.ranks:
            raise InputError(
                f"windows: they are for {first.ranks} and {count(window.ranks, 'rank')}; batch all for the same"
            )
    if len(windows) == 1:
        return first
    before = np.cumsum([0, *(len(window.token) for window in windows)])
    offsets = [window.offsets[:-1] + start for window, start in zip(windows, before, strict=False)]
    sizes = {window.tokens_per_rank for window in windows}
    return dataclasses.replace(
        first,
        token=np.concatenate([window.token for window in windows]),
        home=np.concatenate([window.home for window in windows]),
        offsets=np.concatenate([*offsets, before[-1:]]),
        phase=np.concatenate([window.phase for window in windows]),
        tokens_per_rank=sizes.pop() if len(sizes) == 1 else None,
        notes=tuple(dict.fromkeys(note for window in windows for note in window.notes)),
        resampled=any(window.resampled for window in windows),
    )


def check_way(name: str) -> None:
    """Check the name of a way to cut windows.

    Raises
    ------
    UnknownName
        If there is none of that name.
    """
    if name not in WINDOWS:
        raise UnknownName("way to cut windows", name, WINDOWS)
