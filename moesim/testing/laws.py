"""Breaking a law, said in one way."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

_ROUNDING: Final = 1e-9


class Verdict(AssertionError):
    """A law is broken."""


def law(holds: bool, broken: str) -> None:
    """Raise a verdict unless the law holds."""
    if not holds:
        raise Verdict(broken)


def near(got: Any, expected: Any, broken: str, rounding: float = _ROUNDING) -> None:
    """Raise a verdict unless numbers agree, rounding aside."""
    off = np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64))
    limit = rounding * np.maximum(np.abs(expected), 1.0)
    law(bool((off <= limit).all()), f"{broken} (off by up to {off.max():.6g})")


def at_least(larger: Any, smaller: Any, broken: str) -> None:
    """Raise a verdict where the larger is less than the smaller, rounding aside."""
    short = np.asarray(smaller, np.float64) - np.asarray(larger, np.float64)
    limit = _ROUNDING * np.maximum(np.abs(np.asarray(smaller, np.float64)), 1e-12)
    law(bool((short <= limit).all()), f"{broken} (by up to {short.max(initial=0.0):.6g})")
