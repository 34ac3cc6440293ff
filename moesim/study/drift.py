"""Traffic that drifts: real requests of a trace, sorted so that one domain follows another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np

from moesim.base.errors import InputError, UnknownName
from moesim.base.units import count
from moesim.trace import PHASES, Batches, Trace, make_batches


def drifting(
    trace: Trace,
    ranks: int,
    *,
    domains: Sequence[str] = (),
    block_steps: int = 8,
    cycles: int = 2,
    tokens_per_rank: int = 16,
    phase: str | None = None,
    max_steps: int | None = None,
    seed: int = 0,
) -> tuple[Batches, tuple[str, ...]]:
    """Return steps in which the traffic switches from domain to domain, and the name of each step's domain.

    Within a block every token runs once, so that what a plan saw there says nothing about single tokens to come; a
    domain that comes again goes on where it stopped, and begins anew when it is through.

    Parameters
    ----------
    domains
        Domains in order, each a name or a pattern (``"*history*"``, ``"math|physics"``); default: all of the trace.
    block_steps
        Steps of one domain before the next; fewer where a domain has not so many tokens, which a note says.
    cycles
        Times that the domains come round.
    tokens_per_rank, phase, seed
        How tokens are packed into steps; see :func:`moesim.trace.make_batches`. Phase: default the first that the
        trace holds.
    max_steps
        Only so many steps from the beginning, at least 1.

    Raises
    ------
    InputError
        If there is only one domain or one is named, one does not fill a step, or a number is not at least 1.
    """
    if block_steps < 1 or cycles < 1:
        raise InputError(f"drift: expected at least 1 step a block and 1 cycle, got {block_steps} and {cycles}")
    if max_steps is not None and max_steps < 1:
        raise InputError(f"drift: expected at least 1 step, got {max_steps}")
    wanted = tuple(domains) or tuple(np.array(trace.domains)[np.unique(trace.domain)].tolist())
    if len(wanted) < 2:
        if domains:
            held = ", ".join(trace.domains)
            raise InputError(f"drift: {wanted[0]!r} is one; name at least two of the domains {held}")
        raise InputError(f"drift: the trace has only the domain {wanted[0]!r}; give one with labelled domains")
    if phase is None:
        phase = PHASES[int(trace.phase.min())]
    parts: list[Batches] = []
    rows_of: list[np.ndarray] = []
    notes: list[str] = []
    for name in wanted:
        rows = np.flatnonzero(np.isin(trace.domain, _codes(trace, name)) & (trace.phase == PHASES.index(phase)))
        if len(rows) < ranks * tokens_per_rank:
            raise InputError(
                f"drift: domain {name!r} holds {count(len(rows), f'{phase} token')}, a step of {ranks} x "
                f"{tokens_per_rank} needs {ranks * tokens_per_rank}; take fewer tokens per rank, or join domains (a|b)"
            )
        part = make_batches(trace.select(rows), ranks, tokens_per_rank=tokens_per_rank, phase=phase, seed=seed)
        parts.append(part)
        rows_of.append(rows)
        if len(part) < block_steps:
            notes.append(f"domain {name}: blocks of {count(len(part), 'step')}, more would repeat tokens")
    token, home, offsets, labels = [], [], [0], []
    begun = [0] * len(parts)
    for _ in range(cycles):
        for number, part in enumerate(parts):
            for _ in range(min(block_steps, len(part))):
                step = begun[number] % len(part)
                begun[number] += 1
                chosen = part.token[part.offsets[step] : part.offsets[step + 1]]
                token.append(rows_of[number][chosen])
                home.append(part.homes(step))
                offsets.append(offsets[-1] + len(chosen))
                labels.append(wanted[number])
    if any(steps > len(part) for steps, part in zip(begun, parts, strict=True)):
        notes.append("domains are short: their tokens come again in later blocks")
    batches = Batches(
        trace=trace,
        token=np.concatenate(token),
        home=np.concatenate(home),
        offsets=np.array(offsets),
        phase=np.full(len(labels), PHASES.index(phase)),
        ranks=ranks,
        tokens_per_rank=tokens_per_rank,
        notes=tuple(dict.fromkeys([*notes, "requests are sorted by domain: a drift made of real traffic"])),
        resampled=any(part.resampled for part in parts),
    )
    if max_steps is None or max_steps >= len(batches):
        return batches, tuple(labels)
    first, note = batches.take(slice(max_steps)), f"kept: the first {max_steps} of {count(len(batches), 'step')}"
    return dataclasses.replace(first, notes=(*batches.notes, note)), tuple(labels[:max_steps])


def _codes(trace: Trace, pattern: str) -> list[int]:
    found = [
        code for code, name in enumerate(trace.domains) if any(fnmatchcase(name, one) for one in pattern.split("|"))
    ]
    if not found:
        raise UnknownName("domain of this trace", pattern, trace.domains)
    return found
