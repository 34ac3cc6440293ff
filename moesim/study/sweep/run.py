"""sweep(): run every point of a study that is not on disk yet, then write the table."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moesim.base.arrays import digest
from moesim.base.errors import FormatError, Infeasible, InputError, MoesimError, UnknownName
from moesim.base.units import count
from moesim.base.version import VERSION
from moesim.study.sweep.file import Study
from moesim.study.sweep.kinds import KINDS, RESERVED, Kind, Row, hiding
from moesim.study.sweep.runners import RUNNERS
from moesim.study.sweep.store import TABLE, Store

_FILES: Final = ("model", "dims", "compute")
"""Settings that are a name or the path of a file."""


@dataclass(frozen=True)
class Swept:
    """What :func:`sweep` did.

    Parameters
    ----------
    study
        The study.
    rows
        One for each point, in order: number, varied settings, status, results.
    computed, found
        Points that were run now, and points that were on disk.
    seconds
        Wall-clock seconds of this run.
    table
        The file that holds the rows.
    """

    study: Study
    rows: tuple[Row, ...]
    computed: int
    found: int
    seconds: float
    table: Path

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of results that people look at first."""
        return self.study.columns or tuple(KINDS.get(self.study.kind).COLUMNS)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with stable keys."""
        return {
            "schema": 1,
            "study": self.study.name,
            "question": self.study.question,
            "kind": self.study.kind,
            "points": len(self.rows),
            "computed": self.computed,
            "resumed": self.found,
            "table": str(self.table),
            "rows": [dict(row) for row in self.rows],
        }


@dataclass(frozen=True)
class Task:
    """A point on its way to whoever runs it."""

    identity: str
    kind: str
    settings: Mapping[str, Any]
    folder: Path
    store: Path | None


def sweep(
    study: Study,
    output: str | Path,
    *,
    runner: str = "local",
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Swept:
    """Run a study; go on where an earlier run with the same points was stopped.

    Parameters
    ----------
    output
        Folder for rows, table and timings.
    runner, jobs
        Name in ``RUNNERS`` and number of its workers.
    progress
        Called with the number of points done, and of all, at the beginning and after each.

    Raises
    ------
    InputError
        If a setting of any point cannot be, or the study shows a column that its kind does not have, before any point
        is run; or, after all have run, a point is broken by a defect.
    """
    begin = time.monotonic()
    kind, run = KINDS.get(study.kind), RUNNERS.get(runner)
    say = progress or (lambda _done, _all: None)
    points = [_located(settings, study.folder) for settings in study.points]
    needs = [_needs(kind, study, settings) for settings in points]
    _check_columns(study, kind)
    readers = {key: read for found in needs for key, read in found.items()}
    shared = {key: _read(study, key, read) for key, read in readers.items()}
    named = {key: _digest_of(value) for key, value in shared.items()}
    # by what files hold, not by where they lie
    identities = [
        digest(VERSION, study.kind, settings, [named[key] for key in found], _held(there))
        for settings, there, found in zip(study.points, points, needs, strict=True)
    ]
    store = Store(output)
    done = store.done(identities)
    # a point that stands twice in a list is run once
    missing = [identity for identity in dict.fromkeys(identities) if identity not in done]
    settings_of = dict(zip(identities, points, strict=True))
    # workers of this machine write what they found themselves: a killed sweep loses no finished point
    own = store.folder.absolute() if runner == "local" else None
    tasks = [Task(identity, study.kind, settings_of[identity], study.folder, own) for identity in missing]
    total, finished, broken = len(set(identities)), len(done), []
    say(finished, total)
    for identity, row, wall_s, defect in run(run_task, tasks, shared, jobs) if tasks else ():
        if defect:
            broken.append(f"{_words(settings_of[identity], study.varied)}: {defect}")
        elif own is None:
            store.write(identity, row, wall_s)
        finished += 1
        say(finished, total)
    if broken:
        raise InputError(
            f"sweep: {len(broken)} of {count(total, 'point')} broke; the others are kept, run again to retry. First: "
            f"{broken[0]}"
        )
    varied = [{key: settings.get(key) for key in study.varied} for settings in study.points]
    rows = store.finish(identities, varied)
    return Swept(study, tuple(rows), len(missing), len(done), time.monotonic() - begin, store.folder / TABLE)


def _check_columns(study: Study, kind: Kind) -> None:
    """Refuse a study that wants to show what no point of its kind has."""
    known = (*RESERVED, *study.varied, *kind.RESULTS)
    asked = [("study.columns", name) for name in study.columns]
    for number, front in enumerate(study.pareto):
        wanted = {"x": front.x, "y": front.y, "by": front.by}
        asked += [(f"study.pareto[{number}].{key}", name) for key, name in wanted.items() if name is not None]
    for place, name in asked:
        if name not in known:
            raise FormatError(study.path, place, str(UnknownName("column", name, known)))


def run_task(task: Task, shared: Mapping[str, Any]) -> tuple[str, Row, float, str]:
    """Run one point; return its identity, row, seconds, and the defect that broke it, if one did.

    What cannot be (too few slots, a transport that does not fit) is a result: the row's status says so.
    """
    begin = time.monotonic()
    row: Row
    try:
        found = KINDS.get(task.kind).run(task.settings, task.folder, shared)
        if hidden := hiding(found, task.settings):
            names = ", ".join(hidden)
            raise TypeError(f"kind of study {task.kind!r}: results named like a setting ({names}) hide it; rename them")
        row = {"status": "done", **found}
    except Infeasible as error:
        row = {"status": f"infeasible: {error}"}
    except MoesimError as error:
        row = {"status": f"cannot run: {error}"}
    except Exception as error:  # one broken point must not lose the others
        return task.identity, {}, 0.0, f"{type(error).__name__}: {error}"
    wall_s = time.monotonic() - begin
    if task.store is not None:
        Store(task.store).write(task.identity, row, wall_s)
    return task.identity, row, wall_s, ""


def _located(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings in which what may be a name or a file is the path of the file, where the study has that file."""
    files = {key: folder / value for key in _FILES if isinstance(value := settings.get(key), str)}
    return {**settings, **{key: str(path) for key, path in files.items() if path.is_file()}}


def _held(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of files that settings name and that nobody else reads."""
    paths = {key: Path(value) for key in _FILES if isinstance(value := settings.get(key), str)}
    return {key: digest(path.read_bytes()) for key, path in paths.items() if path.is_file()}


def _needs(kind: Any, study: Study, settings: Mapping[str, Any]) -> Mapping[str, Callable[[], Any]]:
    try:
        found: Mapping[str, Callable[[], Any]] = kind.needs(settings, study.folder)
    except InputError as error:
        raise FormatError(study.path, _words(settings, study.varied), str(error)) from None
    return found


def _read(study: Study, key: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UnknownName as error:
        # errors of files name the file; this one is of the study
        raise FormatError(study.path, key.partition(":")[0], str(error)) from None


def _words(settings: Mapping[str, Any], varied: Sequence[str]) -> str:
    return "point " + (", ".join(f"{key} = {settings[key]!r}" for key in varied if key in settings) or "(the only one)")


def _digest_of(value: Any) -> str:
    known = getattr(value, "digest", None)
    if isinstance(known, str):
        return known
    return digest(value) if dataclasses.is_dataclass(value) else digest(repr(value))
