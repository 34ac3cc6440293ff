"""A sweep as one HTML file that needs nothing else: what was asked, the trade-offs, every point."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from moesim.base.files import write_text
from moesim.base.units import count, show
from moesim.base.version import VERSION
from moesim.report import page
from moesim.study.sweep import Swept, front
from moesim.study.sweep.store import plain

_MOST_NOTES: Final = 12


def write_study_report(found: Swept, path: str | Path, *, commands: Sequence[str] = (), dark: bool = False) -> None:
    """Write a sweep as one HTML file; it loads nothing from elsewhere.

    Parameters
    ----------
    found
        The sweep.
    path
        File to write.
    commands
        Command lines that give the same numbers again.
    """
    write_text(path, study_html(found, commands=commands, dark=dark))


def study_html(found: Swept, *, commands: Sequence[str] = (), dark: bool = False) -> str:
    """Return the report as text; the same rows and commands give the same bytes."""
    body = [_head(found), *_fronts(found, dark), _table(found), _notes(found), _provenance(found, commands)]
    return page(f"moesim: {found.study.name}", "\n".join(body), dark=dark)


def _head(found: Swept) -> str:
    done = sum(row["status"] == "done" for row in found.rows)
    other = len(found.rows) - done
    rest = f", {other} cannot run (the table says why)" if other else ""
    question = f"<p>{escape(found.study.question)}</p>" if found.study.question else ""
    return f"<h1>{escape(found.study.name)}</h1>{question}<p class='quiet'>{done} points{rest}</p>"


def study_figures(found: Swept, dark: bool = False) -> list[Any]:
    """Return a figure for each trade-off that the study asks for."""
    from moesim import figures

    drawn = []
    for wanted in found.study.pareto:
        (x, x_title), (y, y_title) = (
            _axis(column, [_number(row.get(column)) for row in found.rows]) for column in (wanted.x, wanted.y)
        )
        by = wanted.by
        groups = None if by is None else [str(row.get(by)) for row in found.rows]
        labels = [", ".join(f"{key} = {row.get(key)}" for key in found.study.varied) for row in found.rows]
        drawn.append(
            figures.tradeoff(
                x, y, x_title=x_title, y_title=y_title, x_goal=wanted.x_goal, y_goal=wanted.y_goal, title=wanted.title,
                groups=groups, group_title=(by or "").removeprefix("set."), labels=labels, dark=dark,
            )
        )  # fmt: skip
    return drawn


def _axis(column: str, values: list[float]) -> tuple[list[float], str]:
    """Return a column as an axis shows it: in a unit that suits its largest value, and in words."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    words = column.replace("_per_gpu", "_a_GPU")
    units: tuple[tuple[float, str], ...] = ((1.0, ""),)
    if "_per_s" in column:
        words, units = words.replace("_per_s", ""), ((1.0, "1/s"),)
    elif column.endswith("_s"):
        words, units = words.removesuffix("_s"), ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
    elif "_bytes" in column:
        units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
    elif column.endswith("_share"):
        words, units = words.removesuffix("_share"), ((0.01, "%"),)
    factor, unit = next((one for one in units if largest >= one[0]), units[-1])
    return [value / factor for value in values], f"{words.replace('_', ' ')}{f' ({unit})' if unit else ''}"


def _fronts(found: Swept, dark: bool) -> list[str]:
    from moesim import figures

    config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    out = []
    for number, figure in enumerate(study_figures(found, dark), 1):
        wanted = found.study.pareto[number - 1]
        title, subtitle, bare = figures.untitled(figure)
        text: str = bare.to_html(
            full_html=False, include_plotlyjs=False, include_mathjax=False, config=config, div_id=f"front-{number}"
        )
        out.append(f'<h2>{escape(title)}</h2>\n<p class="quiet">{escape(subtitle)}</p>\n{text}')
        x, y = ([_number(row.get(column)) for row in found.rows] for column in (wanted.x, wanted.y))
        rows = [found.rows[i] for i in front(x, y, wanted.x_goal, wanted.y_goal)]
        out.append(_rows(rows, [*found.study.varied, wanted.x, wanted.y]))
    return out


def _table(found: Swept) -> str:
    columns = [*found.study.varied, *found.columns, "status"]
    return f"<h2>Every point</h2>{_rows(found.rows, columns)}"


def _rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in dict.fromkeys(columns))
    lines = [
        "<tr>"
        + "".join(f"<td>{escape(cell(column, row.get(column)))}</td>" for column in dict.fromkeys(columns))
        + "</tr>"
        for row in rows
    ]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def cell(column: str, value: Any) -> str:
    """Return a result as people read it; the unit follows from the column."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(plain(value))
    if column.endswith("_s") and "_per_s" not in column:
        return show(float(value), "time")
    if column.endswith("_bytes") or "_bytes_" in column:
        return show(float(value), "bytes")
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _notes(found: Swept) -> str:
    told: dict[str, list[str]] = {}
    for row in found.rows:
        for note in str(row.get("notes") or "").splitlines():
            # the same was done at many points, with other numbers
            told.setdefault(re.sub(r"\d[\d,.]*", "#", note), []).append(note)
    if not told:
        return ""
    most = sorted(told.values(), key=lambda notes: -len(notes))
    items = "".join(f"<li>{escape(notes[0])} ({_of(notes)})</li>" for notes in most[:_MOST_NOTES])
    more = f"<li>and {len(most) - _MOST_NOTES} more: column notes of the table</li>" if len(most) > _MOST_NOTES else ""
    return f"<h2>Before you trust these numbers</h2><ul>{items}{more}</ul>"


def _of(notes: Sequence[str]) -> str:
    return count(len(notes), "point") + ("" if len(set(notes)) == 1 else ", numbers of the first")


def _provenance(found: Swept, commands: Sequence[str]) -> str:
    run = f"<p>The same numbers again:</p><pre>{escape(chr(10).join(commands))}</pre>" if commands else ""
    return f"<h2>Where this comes from</h2><p>moesim {VERSION}; all columns: {escape(found.table.name)}</p>{run}"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
