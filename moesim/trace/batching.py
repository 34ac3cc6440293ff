"""From a trace to steps: which tokens run together, and on which rank each is at home."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError, TooShort, UnknownName
from moesim.base.units import count
from moesim.trace import packing
from moesim.trace.batches import Batches
from moesim.trace.checks import check_seed, need_routes
from moesim.trace.drawn import drawn_note
from moesim.trace.trace import DECODE, PHASES, PREFILL, TRAIN, Trace
from moesim.trace.unpicked import unpicked_note

__all__ = ["DEFAULT_TOKENS", "RESAMPLED_STEPS", "Batches", "make_batches"]

DEFAULT_TOKENS: Final = {PREFILL: 1024, DECODE: 128, TRAIN: 1024}
"""Tokens per rank and step where none are given: the sizes that DeepEP's and SGLang's wide-EP runs report."""
RESAMPLED_STEPS: Final = 4
"""Steps made of a trace that does not fill one: enough to see that batches differ, few enough to stay honest."""
_HOMES: Final = ("round-robin", "least-loaded")
_NO_LIMIT: Final = 2**62
_MOST_DRAWS: Final = 200
"""Times a token may stand in one step: beyond that a step says nothing about the traffic, and takes minutes."""


def make_batches(
    trace: Trace,
    ranks: int,
    *,
    tokens_per_rank: int | Mapping[int, int] | None = None,
    phase: str | None = None,
    homes: str = "round-robin",
    seed: int = 0,
    max_steps: int | None = None,
) -> Batches:
    """Return the steps in which a trace runs on a number of ranks.

    A trace that recorded its steps and the source ranks of as many ranks is replayed as recorded, unless
    ``tokens_per_rank`` is given. Otherwise requests get home ranks and are packed into full steps: prefill in
    chunks that keep the order of positions, decode one token a request. What does not fill a step is dropped.
    Where fewer requests live at a time than a decode step holds, decode tokens count as requests of their own; a
    trace that does not fill one step is resampled. The notes say what was done.

    Parameters
    ----------
    ranks
        Size of the expert-parallel group.
    tokens_per_rank
        Tokens every rank holds in a step, or by phase code; see `DEFAULT_TOKENS`.
    phase
        Name of the phase to keep. None keeps all phases of steps that are replayed as recorded, the phases of a
        ``tokens_per_rank`` given by phase, and else the first of prefill, decode and train that the trace holds.
    homes
        ``"round-robin"``: ranks with room take the next request in turn. ``"least-loaded"``: the emptiest one
        does. In decode a rank takes a request whenever one of its own ends, so both are the same.
    seed
        Orders the requests of a trace that did not record steps, and draws where it must be resampled.
    max_steps
        Keep only the first so many steps (of each phase); a resampled trace has exactly so many.

    Raises
    ------
    InputError
        If the trace has no routes or no token of the phase, or a number is out of range.
    """
    _check_options(trace, ranks, tokens_per_rank, phase, homes, max_steps, seed)
    rows = np.arange(trace.rows) if phase is None else np.flatnonzero(trace.phase == PHASES.index(phase))
    held = [code for code in range(len(PHASES)) if (trace.phase[rows] == code).any()]
    if not held:
        there = ", ".join(sorted({PHASES[code] for code in np.unique(trace.phase)})) or "none at all"
        raise InputError(
            f"batching: this trace or part of it holds no {'' if phase is None else f'{phase} '}tokens (it holds: "
            f"{there}); choose a phase that it holds, or give another trace"
        )
    limit = _NO_LIMIT if max_steps is None else min(max_steps, _NO_LIMIT)
    notes = [note for note in (drawn_note(trace), unpicked_note(trace)) if note]
    if tokens_per_rank is None and trace.has_steps:
        source = trace.source[rows]
        why_not = why_not_as_recorded(int(source.min()), int(source.max()), trace.origin, ranks)
        if not why_not:
            found = as_recorded(trace, rows, ranks, limit)
            return dataclasses.replace(found, notes=(*notes, *found.notes))
        notes.append(f"regrouped: {why_not}, so tokens are packed into steps anew")
    elif trace.has_steps:
        notes.append("regrouped: a number of tokens per rank was given, so recorded steps are packed anew")
    if isinstance(tokens_per_rank, Mapping):
        if missing := sorted(set(tokens_per_rank) - set(held)):
            raise InputError(
                f"batching: this trace or part of it holds no {PHASES[missing[0]]} tokens; leave that phase out"
            )
        codes = sorted(tokens_per_rank)
        sizes = dict(tokens_per_rank)
    else:
        codes = held[:1]
        sizes = DEFAULT_TOKENS if tokens_per_rank is None else dict.fromkeys(held, tokens_per_rank)
    if left_out := [PHASES[code] for code in held if code not in codes]:
        notes.append(f"phase: {' and '.join(PHASES[c] for c in codes)} only, {' and '.join(left_out)} left out")
    parts = [
        _pack(trace, rows[trace.phase[rows] == code], code, ranks, sizes[code], homes, seed, limit) for code in codes
    ]
    lengths = np.concatenate(
        [np.full(part.steps, ranks * sizes[code]) for code, part in zip(codes, parts, strict=True)]
    )
    return Batches(
        trace=trace,
        token=np.concatenate([part.token for part in parts]),
        home=np.concatenate([part.home for part in parts]),
        offsets=np.r_[0, np.cumsum(lengths)].astype(np.int64),
        phase=np.repeat(codes, [part.steps for part in parts]),
        ranks=ranks,
        tokens_per_rank=sizes[codes[0]] if len({sizes[code] for code in codes}) == 1 else None,
        notes=(*notes, *(note for part in parts for note in part.notes)),
        resampled=any(part.resampled for part in parts),
    )


def _check_options(
    trace: Trace,
    ranks: int,
    tokens_per_rank: int | Mapping[int, int] | None,
    phase: str | None,
    homes: str,
    max_steps: int | None,
    seed: int,
) -> None:
    need_routes(trace.routes, "batching")
    if ranks < 1:
        raise InputError(f"batching: expected at least 1 rank, got {ranks}")
    if phase is not None and phase not in PHASES:
        raise UnknownName("phase", phase, PHASES)
    if homes not in _HOMES:
        raise UnknownName("way to choose home ranks", homes, _HOMES)
    check_seed(seed)
    if max_steps is not None and max_steps < 1:
        raise InputError(f"batching: max_steps must be at least 1, got {max_steps}")
    sizes = tokens_per_rank if isinstance(tokens_per_rank, Mapping) else {PREFILL: tokens_per_rank}
    if not sizes or any(code not in range(len(PHASES)) for code in sizes):
        raise InputError(
            f"batching: tokens_per_rank by phase needs phase codes 0..{len(PHASES) - 1}, got {dict(sizes)}"
        )
    if any(size is not None and size < 1 for size in sizes.values()):
        raise InputError(f"batching: tokens_per_rank must be at least 1, got {tokens_per_rank}")


def why_not_as_recorded(low: int, high: int, origin: Mapping[str, Any], ranks: int) -> str:
    """Return why recorded steps cannot be replayed on so many ranks, empty if they can.

    Parameters
    ----------
    low, high
        Smallest and largest source rank of the tokens.
    origin
        Of the trace.
    """
    if low < 0:
        return "source ranks were not recorded"
    told = origin.get("ranks")
    recorded = max(told if isinstance(told, int) else 0, high + 1)
    return "" if recorded == ranks else f"the trace was recorded on {count(recorded, 'rank')}, not {ranks}"


def as_recorded(trace: Trace, rows: Array, ranks: int, limit: int = _NO_LIMIT) -> Batches:
    """Return the recorded steps of some rows of a trace, at most so many."""
    rows = rows[np.lexsort((rows, trace.source[rows], trace.step[rows]))]
    ids, begin = np.unique(trace.step[rows], return_index=True)
    offsets = np.r_[begin, len(rows)][: min(len(ids), limit) + 1]
    notes = ["as recorded: steps and home ranks are those of the trace"]
    if len(ids) > limit:
        notes.append(f"kept: the first {limit} of {count(len(ids), 'step')}")
    rows = rows[: offsets[-1]]
    by_phase = np.stack([np.add.reduceat(trace.phase[rows] == code, offsets[:-1]) for code in range(len(PHASES))])
    if mixed := int(((by_phase > 0).sum(axis=0) > 1).sum()):
        notes.append(f"mixed: tokens of several phases are in {count(mixed, 'step')}, which go by the phase of most")
    return Batches(
        trace=trace,
        token=rows,
        home=trace.source[rows],
        offsets=offsets,
        phase=by_phase.argmax(axis=0),
        ranks=ranks,
        notes=tuple(notes),
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """Packed steps of one phase."""

    token: Array
    home: Array
    steps: int
    notes: tuple[str, ...]
    resampled: bool


def _pack(trace: Trace, rows: Array, code: int, ranks: int, size: int, homes: str, seed: int, limit: int) -> _Part:
    rng = np.random.default_rng([seed, code])
    rows, lengths = _requests_in_order(trace, rows, rng)
    name, full = PHASES[code], ranks * size
    if full > _MOST_DRAWS * len(rows):
        raise TooShort(
            f"batching: a step of {ranks} x {size} tokens would draw each of {count(len(rows), f'{name} token')} "
            f"{full / len(rows):.0f} times",
            f"give a longer trace, or at most {count(_MOST_DRAWS * len(rows) // ranks, 'token')} per rank",
        )
    if code != DECODE:
        place, home, _, steps = packing.chunks(lengths, ranks, size, homes == "least-loaded", limit)
        if steps:
            return _Part(rows[place], home, steps, _left_over(name, rows, place, limit, steps), False)
        return _resample_chunks(rows, lengths, name, ranks, size, homes, seed, limit, rng)
    place, home, _, steps = packing.live(lengths, ranks, size, limit)
    if steps and len(place) >= min(len(rows) // full, limit) * full / 2:
        return _Part(rows[place], home, steps, _left_over(name, rows, place, limit, steps), False)
    return _independent(trace, rows, len(lengths), name, ranks, size, seed, limit, rng)


def _requests_in_order(trace: Trace, rows: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return rows sorted by request and position, and tokens per request, in the order of arrival or shuffled."""
    _, group, lengths = np.unique(trace.request[rows], return_inverse=True, return_counts=True)
    if trace.has_steps:
        arrival = np.full(len(lengths), np.iinfo(np.int64).max)
        np.minimum.at(arrival, group, trace.step[rows])
        order = np.argsort(arrival, kind="stable")
    else:
        order = rng.permutation(len(lengths))
    served = np.empty(len(order), np.int64)
    served[order] = np.arange(len(order))
    rows = rows[np.lexsort((rows, trace.position[rows], served[group]))]
    return rows, lengths[order]


def _left_over(name: str, rows: Array, place: Array, limit: int, steps: int) -> tuple[str, ...]:
    left = len(rows) - len(place)
    if not left:
        return ()
    if steps == limit:
        return (f"kept: the first {count(steps, f'{name} step')}, {len(place)} of {len(rows)} tokens",)
    return (f"dropped: {left} of {len(rows)} {name} tokens that do not fill a step of every rank",)


def _resample_chunks(
    rows: Array,
    lengths: Array,
    name: str,
    ranks: int,
    size: int,
    homes: str,
    seed: int,
    limit: int,
    rng: np.random.Generator,
) -> _Part:
    wanted = RESAMPLED_STEPS if limit == _NO_LIMIT else limit
    begin = np.cumsum(lengths) - lengths
    rounds = -(-wanted * ranks * size // len(rows))
    while True:
        # whole shuffles one after the other, so that every request is used equally often, give or take one
        drawn = np.concatenate([rng.permutation(len(lengths)) for _ in range(rounds)])
        # a copy begins somewhere inside its request and comes round: ranks that hold copies of one request in the same
        # step hold different parts of it, as far as it is long enough
        turn = rng.integers(0, lengths[drawn])
        turn[: len(lengths)] = 0
        first = np.stack([begin[drawn] + turn, begin[drawn]], axis=1).ravel()
        length = np.stack([lengths[drawn] - turn, turn], axis=1).ravel()
        first, length = first[length > 0], length[length > 0]
        place, home, _, steps = packing.chunks(length, ranks, size, homes == "least-loaded", wanted)
        if steps == wanted:
            break
        rounds *= 2
    place = packing.ragged_range(first, length)[place]
    why = f"{count(len(rows), f'{name} token')} cannot fill a step of {ranks} x {size}"
    if len(rows) >= ranks * size:
        why = (
            f"{count(len(rows), f'{name} token')} of {count(len(lengths), 'request')}, each whole on one rank, do not "
            f"give every one of {count(ranks, 'rank')} {count(size, 'token')}"
        )
    note = (
        f"resampled: {why}; in "
        f"{count(wanted, 'step')} requests are drawn again and again (seed {seed}), each token "
        f"{len(place) / len(rows):.3g} times on average"
    )
    return _Part(rows[place], home, wanted, (note,), True)


def _independent(
    trace: Trace,
    rows: Array,
    requests: int,
    name: str,
    ranks: int,
    size: int,
    seed: int,
    limit: int,
    rng: np.random.Generator,
) -> _Part:
    full = ranks * size
    what = f"{count(requests, 'request')} cannot keep {count(full, 'place')} busy"
    if len(rows) >= full:
        steps = min(len(rows) // full, limit)
        # recorded time is kept, so that drift over the trace survives; else requests are mixed
        drawn = np.argsort(trace.step[rows], kind="stable") if trace.has_steps else rng.permutation(len(rows))
        notes = [f"independent: {what}; {name} tokens run as requests of their own, each once"]
        notes += _left_over(name, rows, drawn[: steps * full], limit, steps)
    else:
        steps = RESAMPLED_STEPS if limit == _NO_LIMIT else limit
        rounds = -(-steps * full // len(rows))
        drawn = np.concatenate([rng.permutation(len(rows)) for _ in range(rounds)])
        notes = [
            f"resampled: {what}; in {count(steps, 'step')} {count(len(rows), f'{name} token')} run as requests of "
            f"their own, drawn again and again (seed {seed}), each {steps * full / len(rows):.3g} times on average"
        ]
    # step by step, rank after rank
    token = rows[drawn[: steps * full]].reshape(steps, size, ranks).transpose(0, 2, 1).ravel()
    home = np.tile(np.repeat(np.arange(ranks), size), steps)
    return _Part(token, home, steps, tuple(notes), True)
