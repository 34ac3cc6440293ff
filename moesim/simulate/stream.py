"""simulate_file(): replay a trace file of any length, a chunk at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array, digest
from moesim.base.errors import InputError
from moesim.cluster import Cluster
from moesim.simulate.inputs import prepare
from moesim.simulate.loads import Loader
from moesim.simulate.report import Report
from moesim.simulate.run import OPTIONS, engine_of
from moesim.simulate.tally import Tally
from moesim.trace import Trace, iter_chunks, make_batches
from moesim.trace.batching import DEFAULT_TOKENS

_COLUMNS: Final = ("routes", "weights", "step", "request", "position", "source", "phase", "domain")


def simulate_file(
    path: str | Path,
    cluster: Cluster,
    plan: Any,
    *,
    chunk: int = 131_072,
    tokens_per_rank: int | None = None,
    engine: str | None = None,
    **options: Any,
) -> Report:
    """Return what the steps of a trace file cost, with memory for one chunk of it, whatever its length.

    Recorded steps are replayed whole: one that a chunk's end cuts goes into the next chunk. Where tokens are packed
    into steps, requests are packed chunk by chunk, and what does not fill a step goes into the next chunk; the last
    tokens that fill none are dropped and noted. Steps with tokens of several phases are not told apart: a file holds
    one phase.

    Parameters
    ----------
    path
        A trace in Parquet, as `Trace.write` and `import` write it.
    chunk
        Tokens that are read at a time.
    tokens_per_rank
        Tokens of a rank in a step, None: as recorded, else the usual number.
    options
        As of :func:`moesim.simulate.simulate`, but spans, max_steps and deployment.

    Raises
    ------
    InputError
        If no step comes of the file, or an option is none of those.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise InputError(f"simulate_file: unknown options {unknown}; known ones are {sorted(OPTIONS)}")
    given = {**OPTIONS, **options}
    tally: Tally | None = None
    rest: Trace | None = None
    seen: list[Array] = []
    tokens: list[Array] = []
    digests: list[str] = []
    for part in iter_chunks(path, chunk):
        trace = part if rest is None else joined(rest, part)
        rest = trace
        recorded = tokens_per_rank is None and trace.has_steps
        ready = trace.select(trace.step != trace.step[-1]) if recorded else trace
        wanted = cluster.ranks * (tokens_per_rank or DEFAULT_TOKENS[int(trace.phase[0])])
        if not ready.rows or (not recorded and ready.rows < wanted):
            continue
        batches = make_batches(ready, cluster.ranks, tokens_per_rank=tokens_per_rank, seed=given["seed"])
        used = np.zeros(ready.rows, bool)
        used[batches.token] = True
        rest = trace.select(trace.step == trace.step[-1]) if recorded else trace.select(~used)
        tally = _add(tally, batches, cluster, plan, engine, given, seen, tokens, digests)
    if rest is not None and rest.rows and tokens_per_rank is None and rest.has_steps:
        batches = make_batches(rest, cluster.ranks, seed=given["seed"])
        tally, rest = _add(tally, batches, cluster, plan, engine, given, seen, tokens, digests), None
    if tally is None:
        raise InputError(f"{path}: no step of {cluster.ranks} ranks comes of it; give fewer tokens_per_rank")
    left = 0 if rest is None else rest.rows
    report = tally.report(np.concatenate(tokens), np.concatenate(seen))
    facts = dict(report.facts) | {"chunk": chunk}
    facts["digests"] = dict(facts["digests"]) | {"trace": digest(*digests), "batches": digest(*digests)}
    notes = (*report.notes, f"read {chunk} tokens at a time; {left} tokens at the end filled no step and were dropped")
    return dataclasses.replace(report, facts=facts, notes=notes)


def _add(
    tally: Tally | None,
    batches: Any,
    cluster: Cluster,
    plan: Any,
    engine: str | None,
    given: dict[str, Any],
    seen: list[Array],
    tokens: list[Array],
    digests: list[str],
) -> Tally:
    """Simulate the steps of one chunk into the tally."""
    setup = prepare(
        batches, cluster, plan, tokens_per_rank=None, phase=None, max_steps=None, deployment=None, **given
    )  # fmt: skip
    name, run = engine_of(engine, setup.schedule)
    whole = tally or Tally(setup, name)
    loader = Loader(setup)
    for step in range(len(batches)):
        load = loader.load(step)
        whole.add(step, load, run(load.work, setup.schedule), spans=False)
    seen.append(setup.seen)
    tokens.append(np.diff(batches.offsets))
    digests.append(batches.digest)
    return whole


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
