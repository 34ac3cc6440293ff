"""The verb sweep: many points of one question."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.cli import load, screen
from moesim.cli import options as opt

if TYPE_CHECKING:
    from moesim.study.sweep import Swept

REPORT: Final = "report.html"
_MOST_ROWS: Final = 40
_LINES: Final = 20
"""Lines of progress where stderr is no terminal."""


def sweep(
    context: typer.Context,
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Study file (TOML).", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder of rows, table and report; a stopped sweep goes on."
        ),
    ],
    smoke: Annotated[bool, typer.Option("--smoke", help="Make it small, as the study's \\[smoke] table says.")] = False,
    runner: Annotated[
        str, typer.Option(metavar="NAME", help="Who runs the points: local (processes here) or ray.")
    ] = "local",
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Points at a time. Default: as many as there are cores.")
    ] = None,
    json: opt.Json = False,
) -> None:
    """Run every point of STUDY that is not in the folder yet; write one table and one report.

    Finished points are kept as they come: after a crash or a kill the same command goes on, computes nothing twice, and
    ends with the same table to the byte.
    """
    load.folder(output)
    from moesim.study.sweep import read_study
    from moesim.study.sweep import sweep as run
    from moesim.study_report import write_study_report

    asked = read_study(study, smoke=smoke)
    with _bar() as show:
        found = run(asked, output, runner=runner, jobs=jobs, progress=show)
    write_study_report(found, output / REPORT, commands=[shlex.join(["moesim", *context.obj])])
    screen.say(
        f"{count(found.computed, 'point')} computed, {found.found} found; wrote {found.table} and {output / REPORT}"
    )
    if json:
        screen.print_json(found.to_dict())
    else:
        print_sweep(found)
    if not any(row["status"] == "done" for row in found.rows):
        # a table without a result is none for a script that goes on with it; its rows say why
        raise InputError(
            f"{study}: none of {count(len(found.rows), 'point')} could run; the first: {found.rows[0]['status']}"
        )


def print_sweep(found: Swept) -> None:
    """Print the table of a sweep and the points on its Pareto fronts."""
    from moesim.study_report import cell

    columns = [*found.study.varied, *found.columns]
    rows = [[cell(column, row.get(column)) for column in columns] for row in found.rows if row["status"] == "done"]
    screen.print_table(columns, rows[:_MOST_ROWS], title=found.study.question or found.study.name)
    console = screen.stdout()
    if len(rows) > _MOST_ROWS:
        console.print(f"and {len(rows) - _MOST_ROWS} more rows: {found.table}", markup=False, soft_wrap=True)
    for row in found.rows:
        if row["status"] != "done":
            where = ", ".join(f"{key} = {row.get(key)}" for key in found.study.varied) or "the only point"
            console.print(f"{where}: {row['status']}", markup=False, soft_wrap=True)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """Yield what shows the number of points done: a bar on a terminal, some lines elsewhere."""
    if not sys.stderr.isatty():
        last = [-1]

        def say(done: int, total: int) -> None:
            part = done * _LINES // max(total, 1)
            if part != last[0]:
                last[0] = part
                screen.say(f"{done} of {count(total, 'point')}")

        yield say
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("points"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen.stderr()) as bar:
        task = bar.add_task("points")
        yield lambda done, total: bar.update(task, completed=done, total=total)
