"""What the arrays of a trace must hold; every message names the token or row, the layer and the value."""

from __future__ import annotations

from typing import Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.spec import ModelSpec

_MOST_PICKS: Final = 2**53
"""Picks of a layer that are still counted one by one where they become floating-point numbers."""


def check_routes(routes: Array, spec: ModelSpec) -> None:
    """Raise InputError unless ids lie in -1..E-1 and no expert occurs twice in one pick [tokens, layers, top_k]."""
    from moesim.trace.kernels import first_fault

    token, layer, value, twice = first_fault(routes, spec.experts)
    if token < 0:
        return
    place = f"Trace.routes: token {token}, layer {layer}"
    if twice:
        raise InputError(f"{place}: expert {value} occurs twice in one pick; a token picks an expert at most once")
    raise InputError(
        f"{place}: expert id {value} is not in -1..{spec.experts - 1}; "
        f"give the spec of the model that was recorded ({spec.name!r} has {count(spec.experts, 'expert')})"
    )


def check_weights(weights: Array) -> None:
    """Raise InputError unless every gate weight is finite."""
    finite = np.isfinite(weights)
    if not finite.all():
        token, layer, _ = np.argwhere(~finite)[0]
        raise InputError(f"Trace.weights: token {token}, layer {layer}: not a finite float16; rescale the weights")


def check_counts(counts: Array, step: Array) -> None:
    """Raise InputError unless counts [steps, layers, experts] are not negative, can be summed, and steps ascend."""
    if (counts < 0).any():
        row, layer, expert = np.argwhere(counts < 0)[0]
        raise InputError(f"Trace.given_counts: step {row}, layer {layer}, expert {expert}: negative count")
    most = counts.sum(axis=(0, 2), dtype=np.float64).max(initial=0)
    if most > _MOST_PICKS:
        raise InputError(f"Trace.given_counts: {most:g} picks in a layer cannot be counted exactly; scale them down")
    if (np.diff(step) <= 0).any():
        raise InputError("Trace.step: a trace of counts has one row a step, in ascending order")


def check_range(name: str, column: Array, low: int, stop: int | None = None) -> None:
    """Raise InputError unless the values of a column [rows] lie in ``low <= value < stop``."""
    bad = column < low if stop is None else (column < low) | (column >= stop)
    if bad.any():
        row = int(np.argmax(bad))
        upper = "" if stop is None else str(stop - 1)
        raise InputError(f"Trace.{name}: row {row}: {column[row]} is not in {low}..{upper}")


def check_seed(seed: int) -> None:
    """Raise InputError unless a seed is one that generators take: from 0 up."""
    if seed < 0:
        raise InputError(f"seed: expected a whole number from 0 up, got {seed}")


def need_routes(routes: Array | None, what: str) -> None:
    """Check that a trace tells who picked what: routes [tokens, layers, top_k].

    Raises
    ------
    InputError
        If it holds counts only.
    """
    if routes is None:
        raise InputError(
            f"{what}: the trace holds counts only; steps need the routes of every token: record those, or draw tokens "
            "with these counts by moesim.trace.draw_tokens"
        )
