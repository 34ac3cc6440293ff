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
    begin = time.monotonic()
    if not sys.stderr.isatty():
        yield lambda line: say(f"[{time.monotonic() - begin:6.1f} s] {line}")
        return
    from rich.markup import escape

    with stderr().status("starting") as status:
        yield lambda line: status.update(f"{escape(line)}  [dim]{time.monotonic() - begin:.0f} s")


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

    A terminal that is too narrow wraps lines; no cell is ever cut.

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

    result = Table(box=box.SIMPLE_HEAD, title=escape(title) or None, title_justify="left", pad_edge=False)
    for number, column in enumerate(columns):
        result.add_column(escape(column), justify="right" if number else "left", no_wrap=True)
    for number, row in enumerate(rows):
        result.add_row(*(escape(str(cell)) for cell in row), style="bold" if number == bold else None)
    needed = stdout(_WIDE).measure(result).maximum
    stdout(max(stdout().width, needed)).print(result)


def print_notes(notes: Iterable[str]) -> None:
    """Print what a reader must know before trusting the numbers."""
    from rich.markup import escape

    console = stdout()
    for note in notes:
        console.print(f"[dim]note:[/dim] {escape(note)}", soft_wrap=True)
