"""Quantities: text with a unit outside, SI floats (seconds, bytes, bytes/s, FLOP/s) inside.

``"450 GB/s"``, ``"400 Gb/s"``, ``"2.5 us"``, ``"80 GiB"``, ``"989 TFLOP/s"``. Decimal prefixes are powers of
1000, binary ones (``Ki``, ``Mi``, ``Gi``) of 1024; a small ``b`` is a bit, a capital ``B`` a byte.
"""

from __future__ import annotations

import math
import re
from typing import Final

from moesim.base.errors import InputError

_DECIMAL: Final = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY: Final = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_PREFIX: Final = {**_DECIMAL, **_BINARY}

_TABLES: Final[dict[str, dict[str, float]]] = {
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0},
    "bytes": {f"{p}B": f for p, f in _PREFIX.items()},
    "bandwidth": {f"{p}{u}/s": f * s for p, f in _PREFIX.items() for u, s in (("B", 1.0), ("b", 0.125))}
    | {f"{p}bps": f * 0.125 for p, f in _DECIMAL.items()},
    "flops": {f"{p}{u}": f for p, f in _DECIMAL.items() for u in ("FLOP/s", "FLOPS")},
}
_SHOWN: Final[dict[str, tuple[tuple[str, float], ...]]] = {
    "time": (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)),
    "bytes": tuple((f"{p}B", _DECIMAL[p]) for p in ("T", "G", "M", "k", "")),
    "bandwidth": tuple((f"{p}B/s", _DECIMAL[p]) for p in ("T", "G", "M", "k", "")),
    "flops": tuple((f"{p}FLOP/s", _DECIMAL[p]) for p in ("P", "T", "G", "M", "k", "")),
}
"""Units that values are shown in, largest first."""
_EXAMPLE: Final = {"time": "2.5 us", "bytes": "80 GiB", "bandwidth": "450 GB/s", "flops": "989 TFLOP/s"}
_PATTERN: Final = re.compile(r"\s*([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*([^\s\d].*?)?\s*")


def parse(value: object, kind: str, place: str) -> float:
    """Return a quantity in SI units.

    Parameters
    ----------
    value
        Text such as ``"450 GB/s"``. A bare number is an error: it has no unit.
    kind
        ``"time"``, ``"bytes"``, ``"bandwidth"`` or ``"flops"``.
    place
        What the quantity is, for messages.

    Raises
    ------
    InputError
        If there is no unit, an unknown one, or the number is negative or not finite.
    """
    table = _TABLES[kind]
    example = _EXAMPLE[kind]
    if not isinstance(value, str):
        raise InputError(f'{place}: expected text with a unit such as "{example}", got the bare value {value!r}')
    match = _PATTERN.fullmatch(value)
    if match is None or match[2] is None:
        raise InputError(f'{place}: expected a number with a unit such as "{example}", got {value!r}')
    if match[2] not in table:
        known = f"one of {', '.join(table)}" if len(table) < 10 else f'one such as in "{example}"'
        raise InputError(f"{place}: unknown unit {match[2]!r} in {value!r}; expected {known}")
    result = float(match[1]) * table[match[2]]
    if not math.isfinite(result) or result < 0:
        raise InputError(f'{place}: expected a finite value that is not negative, such as "{example}", got {value!r}')
    return result


def count(number: int, thing: str) -> str:
    """Return a number of things as text: "1 step", "2 steps", "1,000 held-out decode steps"."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def show(value: float, kind: str, digits: int = 4) -> str:
    """Return an SI value as text with a readable unit; :func:`parse` reads it back within rounding."""
    steps = _SHOWN[kind]
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {next(unit for unit, factor in steps if factor == 1.0)}"
    # the unit is that of what is shown: 999.96 us are 1 ms in four digits
    rounded = float(f"{value:.{digits}g}")
    unit, factor = next((step for step in steps if abs(rounded) >= step[1]), steps[-1])
    amount = rounded / factor
    # beyond the largest unit all digits stand, where an exponent would be hard to read
    return f"{amount:.0f} {unit}" if abs(amount) >= 10**digits else f"{amount:.{digits}g} {unit}"
