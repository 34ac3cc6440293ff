"""What goes where: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console

_WIDE: Final = 200
"""Columns of a stdout that is not a terminal: a file has no edge at which a table must be cut."""
_WIDEST: Final = 10_000
"""Columns in which any table fits, to find what it needs."""
_COMPILING: Final = "compiling kernels: once after an installation, for a minute or more; no deadline counts it"


def stdout(width: int | None = None) -> Console:
    """Return the console for data, of a given width or that of the terminal."""
    from rich.console import Console

    if width is None and not sys.stdout.isatty():
        width = _WIDE
    return Console(file=sys.stdout, width=width, highlight=False)


def stderr() -> Console:
    """Return the console for progress, warnings and logs."""
    from rich.console import Console

    return Console(file=sys.stderr, width=None if sys.stderr.isatty() else _WIDE, highlight=False)


def print_json(data: Mapping[str, Any]) -> None:
    """Write data as JSON to stdout."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def say(line: str) -> None:
    """Write one line to stderr, as it is."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


@contextmanager
def progress() -> Iterator[Any]:
    """Yield a function that shows what is being done: one line on a terminal, a line each elsewhere."""
    from moesim.placement.clock import when_compiling

    begin = time.monotonic()
    if not sys.stderr.isatty():

        def line(text: str) -> None:
            say(f"[{time.monotonic() - begin:6.1f} s] {text}")

        with when_compiling(lambda: line(_COMPILING)):
            yield line
        return
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn

    console = stderr()
    # the seconds go on while one thing takes minutes
    columns = SpinnerColumn(), TextColumn("{task.description}  [dim]{task.elapsed:.0f} s")
    with (
        Progress(*columns, console=console, transient=True) as bar,
        when_compiling(lambda: console.print(f"[dim]{_COMPILING}")),
    ):
        task = bar.add_task("starting", total=None)
        yield lambda line: bar.update(task, description=escape(line))


def print_facts(pairs: Iterable[tuple[str, object]], title: str = "") -> None:
    """Print names and values, one pair a line."""
    from rich.markup import escape

    rows = [(name, str(value)) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    console = stdout()
    if title:
        console.print(f"[italic]{escape(title)}[/italic]")
    for name, value in rows:
        console.print(f"[dim]{escape(name.ljust(width))}[/dim]  {escape(value)}", soft_wrap=True)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", bold: int | None = None
) -> None:
    """Print a table: the first column is text, the others are numbers.

    On a terminal that is too narrow the table goes on below itself, the first column again beside each part; no cell is
    ever cut.

    Parameters
    ----------
    columns, rows
        Titles and cells.
    title
        Title of the table.
    bold
        Number of the row that stands out.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    cells = [[escape(str(cell)) for cell in row] for row in rows]
    console, narrow = stdout(), sys.stdout.isatty()

    def part(chosen: Sequence[int], title: str = "") -> Table:
        result = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
        for number in (0, *chosen):
            result.add_column(escape(columns[number]), justify="right" if number else "left", no_wrap=True)
        for number, row in enumerate(cells):
            result.add_row(*(row[column] for column in (0, *chosen)), style="bold" if number == bold else None)
        return result

    def needed(table: Table) -> int:
        # the title may be wrapped, columns may not
        return stdout(_WIDEST).measure(table).maximum

    parts: list[list[int]] = [[]]
    for number in range(1, len(columns)):
        if parts[-1] and narrow and needed(part([*parts[-1], number])) > console.width:
            parts.append([])
        parts[-1].append(number)
    for number, chosen in enumerate(parts):
        table = part(chosen, "" if number else escape(title))
        stdout(max(console.width, needed(table))).print(table)


def print_notes(notes: Iterable[str]) -> None:
    """Print what a reader must know before trusting the numbers."""
    from rich.markup import escape

    console = stdout()
    for note in notes:
        console.print(f"[dim]note:[/dim] {escape(note)}", soft_wrap=True)
