"""simulate_file(): replay a trace file of any length, a chunk at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array, digest
from moesim.base.errors import FormatError, InputError
from moesim.base.units import count
from moesim.cluster import Cluster
from moesim.simulate.inputs import prepare
from moesim.simulate.loads import Loader
from moesim.simulate.report import Report
from moesim.simulate.run import OPTIONS, engine_of
from moesim.simulate.tally import Tally
from moesim.trace import PHASES, Batches, Trace, iter_chunks, make_batches
from moesim.trace.batching import DEFAULT_TOKENS, as_recorded
from moesim.trace.outline import Outline, outline, phase_of

CHUNK: Final = 131_072
"""Tokens that are read at a time."""
_COLUMNS: Final = ("routes", "weights", "step", "request", "position", "source", "phase", "domain")
_OF_A_CHUNK: Final = ("dropped", "regrouped")
"""Notes of batches that tell of a chunk what is not so of the file."""


def simulate_file(
    path: str | Path,
    cluster: Cluster,
    plan: Any,
    *,
    chunk: int = CHUNK,
    tokens_per_rank: int | None = None,
    phase: str | None = None,
    engine: str | None = None,
    watch: Callable[[Batches], None] | None = None,
    held: Outline | None = None,
    **options: Any,
) -> Report:
    """Return what the steps of a trace file cost, with memory for one chunk of it, whatever its length.

    Recorded steps are replayed whole: one that a chunk's end cuts goes into the next chunk. Where tokens are packed
    into steps, requests are packed chunk by chunk, and what does not fill a step goes into the next chunk; the last
    tokens that fill none are dropped and noted. No token is drawn twice: where the requests at hand do not fill a step,
    more is read.

    Parameters
    ----------
    path
        A trace in Parquet, as `Trace.write` and `import` write it.
    chunk
        Tokens that are read at a time.
    tokens_per_rank
        Tokens of a rank in a step, None: as recorded, else the usual number.
    phase
        Name of the phase to keep; needed where the file holds several.
    watch
        Called with the steps of each chunk after they were simulated.
    held
        What the file holds, where :func:`moesim.trace.outline.outline` has told already; it reads all of it.
    options
        As of :func:`moesim.simulate.simulate`, but spans, max_steps and deployment.

    Raises
    ------
    InputError
        If no step comes of the file, its recorded steps do not lie one after the other, it holds several phases of
        which none was chosen, or an option is none of those.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise InputError(f"simulate_file: unknown options {unknown}; known ones are {sorted(OPTIONS)}")
    if tokens_per_rank is not None and tokens_per_rank < 1:
        raise InputError(f"simulate_file: tokens_per_rank must be at least 1, got {tokens_per_rank}")
    given = {**OPTIONS, **options}
    held = held or outline(path)
    if phase is None and len(held.phases) > 1:
        there = " and ".join(PHASES[code] for code in held.phases)
        raise FormatError(path, "phase", f"holds {there} tokens; say which with phase")
    code = phase_of(held, path, phase)
    why_not = (
        "a number of tokens per rank was given" if tokens_per_rank else held.why_not_as_recorded(code, cluster.ranks)
    )
    if not why_not and not held.ordered[code]:
        raise FormatError(
            path, "step", "recorded steps do not lie one after the other, so that no part of the file holds one whole; "
            "read it as a whole, or give tokens per rank, so that steps are packed anew",
        )  # fmt: skip
    parts = _kept(path, chunk, code, held)
    steps = _packed(parts, cluster.ranks, tokens_per_rank or DEFAULT_TOKENS[code], given["seed"]) if why_not else (
        _recorded(parts, cluster.ranks)
    )  # fmt: skip
    replay = _Replay(cluster, plan, engine, given)
    left = 0
    for batches, waiting in steps:
        left = waiting
        if batches is not None:
            replay.add(batches)
            if watch is not None:
                watch(batches)
    notes = [f"regrouped: {why_not}, so tokens are packed into steps anew"] if why_not and held.together else []
    end = f"{count(left, 'token')} at the end filled no step and were dropped" if left else "no token was left over"
    return replay.report(path, chunk, [*notes, f"read {count(chunk, 'token')} at a time; {end}"])


def _kept(path: str | Path, chunk: int, code: int, held: Outline) -> Iterator[Trace]:
    """Yield the tokens of one phase, as they are read."""
    for part in iter_chunks(path, chunk):
        kept = part if len(held.phases) == 1 else part.select(part.phase == code)
        if kept.rows:
            yield kept


def _recorded(parts: Iterator[Trace], ranks: int) -> Iterator[tuple[Batches | None, int]]:
    """Yield recorded steps; the last one of a part waits for the next part, as it may go on there."""
    rest: Trace | None = None
    for part in parts:
        trace = part if rest is None else joined(rest, part)
        open_ = trace.step == trace.step[-1]
        if not open_.all():
            yield as_recorded(trace, np.flatnonzero(~open_), ranks), 0
        rest = trace.select(open_)
    if rest is not None:
        yield as_recorded(rest, np.arange(rest.rows), ranks), 0


def _packed(parts: Iterator[Trace], ranks: int, size: int, seed: int) -> Iterator[tuple[Batches | None, int]]:
    """Yield steps packed of what was read and not used, and how many tokens wait; no steps where there are too few."""
    rest: Trace | None = None
    for part in parts:
        rest = part if rest is None else joined(rest, part)
        if rest.rows >= ranks * size:
            batches = make_batches(rest, ranks, tokens_per_rank=size, seed=seed)
            used = np.bincount(batches.token, minlength=rest.rows)
            # too few requests at a time would be drawn again and again: read on instead
            if used.max() == 1:
                rest = rest.select(used == 0)
                yield batches, rest.rows
                continue
        yield None, rest.rows


class _Replay:
    """The steps of all chunks, added up."""

    def __init__(self, cluster: Cluster, plan: Any, engine: str | None, options: dict[str, Any]) -> None:
        self.cluster, self.plan, self.engine, self.options = cluster, plan, engine, options
        self.tally: Tally | None = None
        self.steps = 0
        self.seen: list[Array] = []
        self.tokens: list[Array] = []
        self.digests: list[str] = []
        self.notes: dict[str, str] = {}

    def add(self, batches: Batches) -> None:
        """Simulate the steps of one chunk."""
        setup = prepare(
            batches, self.cluster, self.plan, tokens_per_rank=None, phase=None, max_steps=None, deployment=None,
            **self.options,
        )  # fmt: skip
        name, run = engine_of(self.engine, setup.schedule)
        self.tally = self.tally or Tally(setup, name)
        loader = Loader(setup, self.steps)
        for step in range(len(batches)):
            load = loader.load(step)
            self.tally.add(step, load, run(load.work, setup.schedule), spans=False)
        self.steps += len(batches)
        self.seen.append(setup.seen)
        self.tokens.append(np.diff(batches.offsets))
        self.digests.append(batches.digest)
        for note in setup.notes:
            kind = note.partition(":")[0]
            if kind not in _OF_A_CHUNK:
                # numbers in it are those of the first chunk that has one of its kind
                self.notes.setdefault(kind, note)

    def report(self, path: str | Path, chunk: int, notes: list[str]) -> Report:
        """Return the report of all steps."""
        if self.tally is None:
            ranks = count(self.cluster.ranks, "rank")
            raise InputError(
                f"{path}: no step of {ranks} comes of it; give fewer tokens per rank, or read it as a whole"
            )
        report = self.tally.report(np.concatenate(self.tokens), np.concatenate(self.seen))
        facts = dict(report.facts) | {"chunk": chunk}
        whole = digest(*self.digests)
        facts["digests"] = dict(facts["digests"]) | {"trace": whole, "batches": whole}
        return dataclasses.replace(report, facts=facts, notes=(*self.notes.values(), *notes))


def joined(first: Trace, second: Trace) -> Trace:
    """Return two parts of one recording as one.

    Raises
    ------
    InputError
        If they name their domains differently.
    """
    if first.domains != second.domains or (first.weights is None) != (second.weights is None):
        raise InputError("trace chunks: they differ in domains or weights, so they are not of one recording")
    columns: dict[str, Any] = {
        name: None if getattr(first, name) is None else np.concatenate([getattr(first, name), getattr(second, name)])
        for name in _COLUMNS
    }
    return dataclasses.replace(second, **columns)
