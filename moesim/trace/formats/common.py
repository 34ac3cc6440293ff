"""What importers share: text and JSON, arrays of ids, the origin, and one trace from many parts."""

from __future__ import annotations

import contextlib
import json
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import FormatError, InputError, UnknownName
from moesim.base.units import count
from moesim.spec import ModelSpec
from moesim.trace.trace import PHASES, Trace

BROKEN_NPY: Final = (
    ValueError, EOFError, OSError, SyntaxError, TypeError, KeyError, OverflowError, MemoryError, tokenize.TokenError,
    UserWarning,
)  # fmt: skip
"""What numpy raises on damaged npy files (a warning where those are errors)."""
_MOST_ID: Final = int(np.iinfo(np.int16).max)
_COLUMNS: Final = ("step", "request", "position", "source", "phase")


@contextlib.contextmanager
def problems_of(path: str | Path) -> Iterator[None]:
    """Name the file in what is wrong with the values that came from it."""
    try:
        yield
    except (FormatError, UnknownName):
        raise
    except InputError as error:
        raise FormatError(path, "", str(error)) from None


def read_text(path: str | Path) -> str:
    """Return the text of a file; FormatError where it cannot be read or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise FormatError(path, "", f"expected text, found {one_line(error)}") from None


def parse_json(path: str | Path, place: str, text: str | bytes) -> Any:
    """Return JSON; FormatError where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, place, f"expected JSON, found {one_line(error)}; save it again") from None


def json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSONL file with their place, ``"line 3"``; nothing but a line is held in memory."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"line {number}", expect_object(path, f"line {number}", line)
    except OSError as error:
        raise FormatError(path, "", f"cannot be read: {error.strerror}") from None


def expect_object(path: str | Path, place: str, line: str | bytes) -> dict[str, Any]:
    """Return the JSON object of a text."""
    value = parse_json(path, place, line)
    if not isinstance(value, dict):
        raise FormatError(path, place, f"expected a JSON object, found {type(value).__name__}")
    return value


def first_line(path: str | Path, most: int = 1 << 20) -> dict[str, Any]:
    """Return the object on the first line of a JSONL file, or an empty one; never raises: for sniffing."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.readline(most))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def head(path: str | Path, most: int = 4096) -> bytes:
    """Return the first bytes of a file, none where it cannot be read; for sniffing."""
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except OSError:
        return b""


def one_line(error: BaseException) -> str:
    """Return the text of an error on one line, not longer than a message should be."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def integers(path: str | Path, place: str, value: Any, axes: Sequence[str]) -> Array:
    """Return whole numbers as an array with as many axes as named.

    Raises
    ------
    FormatError
        If they are not numbers, not whole, ragged, or have other axes.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        raise FormatError(path, place, f"expected numbers [{', '.join(axes)}], found rows of several lengths") from None
    if array.ndim == len(axes) and array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)
    if array.ndim != len(axes) or array.dtype.kind not in "iu":
        found = f"{array.dtype} of shape {list(array.shape)}"
        raise FormatError(path, place, f"expected whole numbers [{', '.join(axes)}], found {found}")
    return array


def integer(path: str | Path, place: str, record: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return the whole number under a key, from 0 up; a default where there is none."""
    value = record.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise FormatError(path, f"{place}, {key}", f"expected a number from 0 up, found {value!r:.60}")
    return value


def expert_ids(path: str | Path, place: str, array: Array) -> Array:
    """Return expert ids as int16; FormatError where they do not fit, which a cast would hide."""
    if array.size and (array.min() < -1 or array.max() > _MOST_ID):
        raise FormatError(path, place, f"expected expert ids from -1 up, found {array.min()}..{array.max()}")
    return array.astype(np.int16)


def expect_picks(path: str | Path, place: str, found: int, spec: ModelSpec) -> None:
    """Raise FormatError unless a token has as many picks as in the model."""
    if found != spec.top_k:
        raise FormatError(
            path,
            place,
            f"expected {count(spec.top_k, 'pick')} a token as in {spec.name}, found {found}; give another model=",
        )


def phase_code(phase: str | None, default: int) -> int:
    """Return the code of the phase that the user names, or the default."""
    if phase is None:
        return default
    if phase not in PHASES:
        raise InputError(f"option phase: expected one of {', '.join(PHASES)}, got {phase!r}")
    return PHASES.index(phase)


def origin_of(
    path: str | Path, format: str, captured_by: str, spec: ModelSpec, given: Mapping[str, Any] | None, **more: Any
) -> dict[str, Any]:
    """Return the origin of an imported trace; what the user gives wins."""
    facts = {"captured_by": captured_by, "imported_from": Path(path).name, "format": format, "synthetic": False}
    return facts | {"model": spec.name} | {key: value for key, value in more.items() if value} | dict(given or {})


def join(path: str | Path, parts: Iterable[Trace]) -> Trace:
    """Return one trace of tokens from its parts, in their order.

    Raises
    ------
    FormatError
        If there is no part, or weights are there in some of them only.
    """
    traces = list(parts)
    if not traces:
        raise FormatError(path, "", "expected tokens, found none; record again")
    if len(traces) == 1:
        return traces[0]
    domains = tuple(dict.fromkeys(name for trace in traces for name in trace.domains))
    codes = [np.array([domains.index(name) for name in trace.domains])[trace.domain] for trace in traces]
    weights = [trace.weights for trace in traces if trace.weights is not None]
    if weights and len(weights) < len(traces):
        raise FormatError(path, "weights", "expected weights for every token or for none of them")
    routes = [trace.routes for trace in traces if trace.routes is not None]
    origin: dict[str, Any] = {}
    for trace in traces:
        origin = dict(trace.origin) | origin
    columns: dict[str, Array] = {name: np.concatenate([getattr(trace, name) for trace in traces]) for name in _COLUMNS}
    return Trace(
        traces[0].spec,
        np.concatenate(routes),
        np.concatenate(weights) if weights else None,
        **columns,
        domain=np.concatenate(codes),
        domains=domains,
        origin=origin,
    )
