"""Simulating a trace file that memory does not hold: some tokens of it at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from moesim.base.errors import FormatError, InputError
from moesim.base.units import count

if TYPE_CHECKING:
    from moesim.cli.inputs import Inputs, Manner
    from moesim.placement import Placement
    from moesim.simulate import Report
    from moesim.solve import Plan
    from moesim.trace import Batches, Trace


def refuse(given: Mapping[str, object]) -> None:
    """Refuse options that need the whole trace.

    Parameters
    ----------
    given
        Option to its value; None, False or empty where it was not given.

    Raises
    ------
    InputError
        If one was given.
    """
    if asked := [option for option, value in given.items() if value]:
        raise InputError(
            f"--at-a-time: the file is read in pieces, but {' and '.join(asked)} would need all of it; leave one out"
        )


def head(path: Path) -> Trace:
    """Return the first token of a trace file, which tells the model.

    Raises
    ------
    FormatError
        If it is no trace file, or empty.
    """
    from moesim.trace import iter_chunks
    from moesim.trace.parquet import sniff

    if path.is_file() and not sniff(path):
        raise FormatError(
            path, "", f"--at-a-time reads trace files; make one: moesim import {path} -o trace.parquet"
        )  # fmt: skip
    for part in iter_chunks(path, 1):
        return part
    raise FormatError(path, "", "expected tokens, found none; record again")


def simulated(
    path: Path, given: Inputs, plan: Plan | Placement, how: Manner, at_a_time: int, *, phase: str | None,
    tokens_per_rank: int | None, network: str, compute: str, attention_tp: int, bounded: bool, slots: int,
    say: Callable[[str], None], **options: Any,
) -> tuple[Report, float | None]:  # fmt: skip
    """Return the report of a trace file, and the seconds that no placement beats, None where these are not asked for.

    Parameters
    ----------
    path
        The trace file.
    given, plan, how, slots
        Where it runs, of the model that the head of the file tells; what runs, how, with so many slots a rank.
    at_a_time
        Tokens.
    bounded
        Whether to tell the bound.
    options
        Of :func:`moesim.simulate.simulate_file`.
    """
    from moesim.simulate import simulate_file
    from moesim.solve.bounds import step_bound
    from moesim.study.windows import costs_in
    from moesim.trace import PHASES
    from moesim.trace.outline import outline, phase_of

    say("looking through the file")
    held = outline(path)
    code = phase_of(held, path, phase)
    costs = costs_in(
        code, given.routing.spec, given.group, dims=given.dims, transport=how.transport, network=network,
        compute=compute,
    )  # fmt: skip
    costs = dataclasses.replace(costs, attention_tp=attention_tp)
    bounds: list[float] = []
    done = 0

    def watch(batches: Batches) -> None:
        nonlocal done
        done += len(batches)
        if bounded:
            bounds.extend(step_bound(batches, given.group, costs, slots).steps_s.tolist())
        say(f"simulated {count(done, 'step')}")

    report = simulate_file(
        path, given.group, plan, chunk=at_a_time, phase=PHASES[code], tokens_per_rank=tokens_per_rank,
        policy=how.policy, dims=given.dims, costs=costs, watch=watch, held=held, **options,
    )  # fmt: skip
    return report, fmean(bounds) if bounded else None
