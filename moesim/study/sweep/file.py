"""A study file: what is fixed, what varies, what is asked; TOML."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moesim.base.errors import FormatError, UnknownName
from moesim.study.sweep.kinds import KINDS, RESERVED
from moesim.study.sweep.problems import first_problem

_SMOKE_VALUES: Final = 2
"""Values of every axis that `--smoke` keeps where the file has no [smoke] table."""


class _Front(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    x: str
    y: str
    x_goal: Literal["min", "max"] = "min"
    y_goal: Literal["min", "max"] = "min"
    by: str | None = None
    title: str = ""


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    kind: str = "step"
    question: str = ""
    columns: list[str] = Field(default_factory=list)
    pareto: list[_Front] = Field(default_factory=list)


class _Varied(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    settings: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, list[Any]] = Field(default_factory=dict)
    together: list[dict[str, list[Any]]] = Field(default_factory=list)
    points: list[dict[str, Any]] = Field(default_factory=list)


class _File(_Varied):
    study: _Head
    smoke: _Varied | None = None


@dataclass(frozen=True)
class Front:
    """A trade-off to draw: two columns, which way each is better, and the column that colours the points."""

    x: str
    y: str
    x_goal: str
    y_goal: str
    by: str | None
    title: str


@dataclass(frozen=True)
class Study:
    """A question and the points that answer it.

    Parameters
    ----------
    name, question, kind
        What it is called, what it asks, and which kind of run a point is (`KINDS`).
    points
        Settings of every point, in the order of the table; keys as in the file.
    varied
        Keys that differ between points, in the order of the file.
    columns
        Results that tables for people show; empty: those of the kind.
    pareto
        Trade-offs of the report.
    path
        The file; paths in it count from its folder.
    """

    name: str
    question: str
    kind: str
    points: tuple[Mapping[str, Any], ...]
    varied: tuple[str, ...]
    columns: tuple[str, ...]
    pareto: tuple[Front, ...]
    path: Path

    @property
    def folder(self) -> Path:
        """Folder from which the file's paths count."""
        return self.path.absolute().parent


def read_study(path: str | Path, *, smoke: bool = False) -> Study:
    """Read a study file.

    Parameters
    ----------
    smoke
        Make it small: what the file's [smoke] table says instead of the same tables outside, or the first values of
        every axis where it has none.

    Raises
    ------
    InputError
        If there is no such file, or it is not a study: the message names the place.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(path, "", f"cannot be read: {error.strerror}; give a study file (TOML)") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "", f"expected TOML: {error}") from None
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        raise FormatError(path, *first_problem(error, _File)) from None
    try:
        KINDS.get(file.study.kind)
    except UnknownName as error:
        raise FormatError(path, "study.kind", str(error)) from None
    varied: _Varied = file
    if smoke:
        varied = _smoke(file)
    points = tuple(_expand(varied, path))
    keys = [*varied.axes, *(key for table in varied.together for key in table)]
    keys += [key for point in varied.points for key in point]
    if taken := [key for key in keys if key in RESERVED]:
        raise FormatError(path, taken[0], "every table has a column of that name, which would hide it; rename it")
    head = file.study
    return Study(
        name=head.name,
        question=head.question,
        kind=head.kind,
        points=points,
        varied=tuple(dict.fromkeys(keys)),
        columns=tuple(head.columns),
        pareto=tuple(Front(**one.model_dump()) for one in head.pareto),
        path=path,
    )


def _smoke(file: _File) -> _Varied:
    if file.smoke is None:
        return _Varied(
            settings=file.settings,
            axes={key: values[:_SMOKE_VALUES] for key, values in file.axes.items()},
            together=[{key: values[:_SMOKE_VALUES] for key, values in table.items()} for table in file.together],
            points=file.points[:_SMOKE_VALUES],
        )
    small = file.smoke
    return _Varied(
        settings={**file.settings, **small.settings},
        axes={**file.axes, **small.axes},
        together=small.together or file.together,
        points=small.points or file.points,
    )


def _expand(varied: _Varied, path: Path) -> Iterator[dict[str, Any]]:
    """Yield the settings of every point: the grid of axes and linked axes, then (or instead) the listed points."""
    runs: list[Sequence[Mapping[str, Any]]] = []
    for key, values in varied.axes.items():
        if not values:
            raise FormatError(path, f"axes.{key}", "expected at least one value")
        runs.append([{key: value} for value in values])
    for number, table in enumerate(varied.together):
        lengths = {key: len(values) for key, values in table.items()}
        if not lengths or len(set(lengths.values())) != 1 or not all(lengths.values()):
            raise FormatError(path, f"together[{number}]", f"expected lists of one length, found {lengths}")
        count = next(iter(lengths.values()))
        runs.append([{key: values[i] for key, values in table.items()} for i in range(count)])
    seen: dict[str, str] = {}
    for number, run in enumerate(runs):
        for key in run[0]:
            if key in seen or key in varied.settings:
                other = seen.get(key, "settings")
                raise FormatError(path, key, f"stands twice: as an axis and in {other}; leave one out")
            seen[key] = f"axis {number}"
    if runs or not varied.points:
        for chosen in itertools.product(*runs):
            yield {**varied.settings, **{key: value for part in chosen for key, value in part.items()}}
    for point in varied.points:
        yield {**varied.settings, **point}
