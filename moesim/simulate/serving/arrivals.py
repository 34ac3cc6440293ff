"""When requests arrive and how long they are: recorded files, or Poisson and Gamma processes."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array, Sealed, digest, seal
from moesim.base.errors import FormatError, InputError, UnknownName
from moesim.base.units import count
from moesim.trace.checks import check_seed


@dataclass(frozen=True, eq=False)
class Arrivals(Sealed):
    """Requests in the order in which they arrive.

    Parameters
    ----------
    at_s
        float64 [requests]: seconds from the first arrival or from the start of the process, ascending.
    prompt, output
        int64 [requests]: tokens of the prompt and tokens that are generated, at least 1.
    source
        Where they come from, for reports.
    notes
        What was left out or changed.
    """

    at_s: Array
    prompt: Array
    output: Array
    source: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_s = seal(self, "at_s", self.at_s, np.float64, ("requests",))
        sizes = {"requests": len(at_s)}
        for name in ("prompt", "output"):
            values = seal(self, name, getattr(self, name), np.int64, ("requests",), sizes)
            if values.size and values.min() < 1:
                raise InputError(f"Arrivals.{name}: expected at least 1 token in every request")
        if at_s.size and not (np.isfinite(at_s).all() and at_s[0] >= 0 and (np.diff(at_s) >= 0).all()):
            raise InputError("Arrivals.at_s: expected ascending seconds from 0")

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def digest(self) -> str:
        """16 hex digits that name the requests."""
        return digest(self.at_s, self.prompt, self.output)

    def first(self, requests: int | None = None, seconds: float | None = None) -> Arrivals:
        """Return only the first requests, or those of the first seconds."""
        keep = np.ones(len(self), bool)
        if requests is not None:
            keep[requests:] = False
        if seconds is not None:
            keep &= self.at_s < seconds
        if not keep.any():
            raise InputError(f"{self.source}: no request is left of {len(self)}; keep more of them")
        return dataclasses.replace(self, at_s=self.at_s[keep], prompt=self.prompt[keep], output=self.output[keep])

    def faster(self, factor: float) -> Arrivals:
        """Return the same requests, arriving so many times as fast."""
        if not (math.isfinite(factor) and factor > 0):
            raise InputError(f"rate: expected a factor above 0, got {factor}")
        note = () if factor == 1 else (f"requests arrive {factor:g} times as fast as recorded",)
        return dataclasses.replace(self, at_s=self.at_s / factor, notes=(*self.notes, *note))


def poisson(rate: float, requests: int, *, prompt: int = 1024, output: int = 128, seed: int = 0) -> Arrivals:
    """Return requests of one size that arrive at random, ``rate`` a second."""
    return gamma(rate, requests, cv=1.0, prompt=prompt, output=output, seed=seed)


def gamma(
    rate: float, requests: int, *, cv: float = 1.0, prompt: int = 1024, output: int = 128, seed: int = 0
) -> Arrivals:
    """Return requests whose gaps are Gamma distributed with a coefficient of variation; 1 is Poisson, more is bursty.

    Parameters
    ----------
    rate
        Mean requests a second.
    cv
        Standard deviation of the gaps over their mean.
    """
    if not (rate > 0 and cv > 0 and requests >= 1):
        raise InputError(f"arrivals: expected rate, cv above 0 and at least 1 request, got {rate}, {cv}, {requests}")
    check_seed(seed)
    shape = 1 / cv**2
    gaps = np.random.default_rng(seed).gamma(shape, 1 / (rate * shape), requests)
    name = "Poisson" if cv == 1 else f"Gamma (cv {cv:g})"
    return Arrivals(
        np.cumsum(gaps), np.full(requests, prompt), np.full(requests, output),
        f"{name}, {rate:g} requests/s, seed {seed}",
    )  # fmt: skip


def read_arrivals(path: str | Path) -> Arrivals:
    """Read requests of the Azure LLM inference traces, of Mooncake or of BurstGPT; the columns tell which.

    Requests without a prompt or without an answer are left out, and a note says how many.

    Raises
    ------
    FormatError
        If the file is none of them; the message names the line.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            rows = list(_reader(path, first)(path, file))
    except OSError as error:
        raise FormatError(path, "", f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FormatError(path, "", "expected text (CSV or JSON lines), found binary data") from None
    except csv.Error as error:
        raise FormatError(path, "", f"expected CSV: {error}; save it again") from None
    if not rows:
        raise FormatError(path, "", "holds no request")
    at, prompt, output = np.array(rows, dtype=np.float64).T
    usable = (prompt >= 1) & (output >= 1)
    if not usable.any():
        raise FormatError(path, "", "no request has both a prompt and an answer")
    order = np.argsort(at, kind="stable")
    order = order[usable[order]]
    left = len(rows) - len(order)
    notes: tuple[str, ...] = (
        (f"left out, without prompt or answer: {left} of {count(len(rows), 'request')}",) if left else ()
    )
    if first.lstrip().startswith("{") and "hash_ids" in first:
        notes += ("prompts are computed whole: what a prefix cache would save (hash_ids) is not modelled",)
    return Arrivals(at[order] - at[order[0]], prompt[order], output[order], path.name, notes)


_MOST_TOKENS: Final = 1 << 40

Reader = Callable[[Path, Any], Iterator[tuple[float, float, float]]]

_CSV: Final = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
}


def _reader(path: Path, first: str) -> Reader:
    if first.lstrip().startswith("{"):
        return _mooncake
    columns = [name.strip() for name in first.split(",")]
    for wanted in _CSV.values():
        if set(wanted) <= set(columns):
            return lambda path, file: _table(path, file, wanted)
    known = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in _CSV.items())
    raise FormatError(path, "line 1", f"expected JSON lines of Mooncake or the columns of {known}; found {columns[:6]}")


def _table(path: Path, file: Any, names: tuple[str, ...]) -> Iterator[tuple[float, float, float]]:
    for number, row in enumerate(csv.DictReader(file, skipinitialspace=True), 2):
        try:
            yield _request(_seconds(row[names[0]]), row[names[1]], row[names[2]])
        except (TypeError, ValueError, KeyError, OverflowError):
            found = ", ".join(str(row.get(name)) for name in names)
            raise FormatError(
                path, f"line {number}", f"expected a time and two numbers of tokens, found {found}"
            ) from None


def _request(at: Any, prompt: Any, output: Any) -> tuple[float, float, float]:
    """Return a time and two whole numbers of tokens; ValueError where they are not."""
    found = float(at), float(prompt), float(output)
    if not (math.isfinite(found[0]) and all(value.is_integer() and value < _MOST_TOKENS for value in found[1:])):
        raise ValueError
    return found


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # the traces of 2023 have seven digits of a second, more than Python reads
        moment, _, fraction = text.strip().removesuffix("+00:00").partition(".")
        whole = datetime.fromisoformat(moment) - datetime(1970, 1, 1)
        return whole.total_seconds() + (float(f"0.{fraction}") if fraction else 0.0)


def _mooncake(path: Path, file: Any) -> Iterator[tuple[float, float, float]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield _request(float(row["timestamp"]) / 1000, row["input_length"], row["output_length"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            found = line.strip()[:60]
            raise FormatError(
                path, f"line {number}", f"expected timestamp (ms), input_length and output_length, found {found!r}"
            ) from None


def arrivals_of(
    what: str, *, rate: float | None, requests: int | None, cv: float | None, prompt: int, output: int, seed: int
) -> Arrivals:
    """Return the requests of a file, or of ``"poisson"`` or ``"gamma"``.

    Raises
    ------
    InputError
        If a process has no rate or number of requests, or a file is none.
    """
    if what in ("poisson", "gamma"):
        if rate is None or requests is None:
            raise InputError(f"{what} arrivals: give both, rate= (requests a second) and requests= (how many)")
        shape = 1.0 if what == "poisson" else (2.0 if cv is None else cv)
        return gamma(rate, requests, cv=shape, prompt=prompt, output=output, seed=seed)
    if not Path(what).is_file():
        if "/" not in what and "." not in what:
            raise UnknownName("arrival process", what, ("poisson", "gamma", "or the path of a file"))
        raise FormatError(what, "", "no such file; give a request trace (Azure, Mooncake, BurstGPT), poisson or gamma")
    found = read_arrivals(what)
    return found.first(requests) if requests is not None else found
