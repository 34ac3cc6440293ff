"""Tokens for a trace that holds counts only: load is as recorded, who is picked together is not known."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.trace.checks import check_seed
from moesim.trace.kernels import mix_picks
from moesim.trace.trace import Trace

DRAWN: Final = "drawn"
"""Key of the origin under which a trace of drawn tokens says so."""
MOST_TOKENS: Final = 131_072
"""Tokens that are drawn at most by default: enough for the load of rare experts, and a second for sixty layers."""
_SWAPS: Final = 4
"""Exchanges for each pick, which mix what is dealt in order: one pick in fifty is never touched."""


def draw_tokens(trace: Trace, *, most: int = MOST_TOKENS, seed: int = 0) -> Trace:
    """Return a trace of tokens that pick each expert as often as counted, in every step and layer.

    Recorders and load balancers of engines mostly keep counts. With the tokens drawn here all that runs on tokens runs
    on them, and balance, expert load and expert time are as recorded, to rounding where there are fewer tokens than
    were counted. Picks of a token are otherwise independent of one another, and of other layers: real tokens pick
    experts together, so copies to other nodes come out as an estimate, usually too many. A trace that has tokens comes
    back as it is.

    Parameters
    ----------
    most
        Tokens to draw at most, of all steps together; at least one a step that has any.
    seed
        Who is picked together by chance.

    Raises
    ------
    InputError
        If there is nothing to draw from, or ``most`` is below 1.
    """
    if trace.given_counts is None:
        return trace
    check_seed(seed)
    if most < 1:
        raise InputError(f"draw_tokens: expected at least 1 token, got {most}")
    counts, top_k = trace.given_counts, trace.spec.top_k
    # a token picks an expert once: the most picked expert of a layer needs as many tokens
    wanted = np.maximum(-(-counts.sum(axis=2) // top_k), counts.max(axis=2)).max(axis=1)
    if not wanted.sum():
        raise InputError("draw_tokens: the trace counts no picks at all; give one that does")
    part = min(1.0, most / float(wanted.sum()))
    rng = np.random.default_rng([seed, 3])
    routes = []
    for step, tokens in enumerate(wanted.tolist()):
        fewer = tokens if part == 1 else min(max(int(tokens * part), 1), tokens)
        picks = np.full((len(counts[step]), fewer, top_k), -1, np.int16)
        for layer, asked in enumerate(counts[step]):
            share = asked if fewer == tokens else _fewer(asked, fewer / tokens, fewer * top_k)
            dealt = np.repeat(np.arange(len(share), dtype=np.int16), np.minimum(share, fewer))
            # side by side in rows: a run of one expert, no longer than a column, has no row twice
            table = np.full(fewer * top_k, -1, np.int16)
            table[: len(dealt)] = dealt
            picks[layer] = table.reshape(top_k, fewer).T
        mix_picks(picks, _SWAPS * top_k * fewer, np.array([rng.integers(1 << 62)], np.uint64))
        routes.append(picks.transpose(1, 0, 2))
    rows = np.repeat(np.arange(trace.rows), [len(one) for one in routes])
    origin = {**trace.origin, DRAWN: {"counts": trace.digest, "seed": seed, "part": part}}
    columns: dict[str, Any] = {name: getattr(trace, name)[rows] for name in ("step", "phase", "domain")}
    return Trace(
        trace.spec, np.concatenate(routes), request=np.arange(len(rows)), position=np.zeros(len(rows)),
        domains=trace.domains, origin=origin, **columns,
    )  # fmt: skip


def drawn_note(trace: Trace) -> str:
    """Return what a reader of results must know of drawn tokens; empty if they were recorded."""
    drawn = trace.origin.get(DRAWN)
    if drawn is None:
        return ""
    kept = "" if drawn["part"] == 1 else f", {count(trace.tokens, 'token')} for {drawn['part']:.2g} of the picks"
    return (
        f"drawn: only counts were recorded; tokens are drawn that pick each expert as often{kept}: "
        "loads are as recorded, copies to other nodes an estimate, too high where experts are picked together"
    )


def _fewer(asked: NDArray[np.int64], part: float, room: int) -> NDArray[np.int64]:
    """Return counts scaled by ``part`` to whole numbers, the largest remainders rounded up, at most ``room`` in all."""
    exact = asked * part
    found = np.floor(exact).astype(np.int64)
    missing = min(round(float(exact.sum())), room) - int(found.sum())
    if missing > 0:
        found[np.argsort(found - exact, kind="stable")[:missing]] += 1
    return np.asarray(found)
