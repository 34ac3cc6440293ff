"""The verb validate: the model against a folder of measurements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moesim.cli import options as opt
from moesim.cli import screen

if TYPE_CHECKING:
    from moesim.validate import Result

_NOTE: Final = (
    "Null predictors: communication without skew (latency + bytes / bandwidth), compute by a roofline without tiles, "
    "ratios equal to the imbalance; effects: none."
)


def validate(
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of measured tables (CSV).", rich_help_panel="Inputs")
    ],
    table: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this table; repeatable. Default: all.", rich_help_panel="Inputs"),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write predicted against measured as HTML.", rich_help_panel="Output"),
    ] = None,
    worst: Annotated[
        bool, typer.Option("--worst", help="Also print the rows farthest off.", rich_help_panel="Output")
    ] = False,
    json: opt.Json = False,
) -> None:
    """Compare the model with published measurements, and with obvious guesses."""
    from moesim.validate import validate as run

    with screen.progress() as say:
        found = run(data, table or (), say)
        if figure is not None:
            say("drawing")
            _draw(found, figure)
    if json:
        screen.print_json(found.to_dict())
        return
    columns = ("table", "role", "rows", "error", "bias", "null's error")
    screen.print_table(columns, _scores(found), title="Model against measurements")
    if worst:
        screen.print_table(("row", "table", "measured", "predicted", "error"), _worst(found), title="Farthest off")
    left_out = [(name, str(count), reason) for name, reason, count in found.skipped]
    if left_out:
        screen.print_table(("table", "rows left out", "why"), left_out)
    screen.print_notes([_NOTE])


def _draw(found: Result, path: Path) -> None:
    from moesim.base.files import write_text
    from moesim.validate.figure import predicted_measured

    write_text(path, predicted_measured(found).to_html(include_plotlyjs=True))


def _scores(found: Result) -> Iterator[tuple[str, ...]]:
    for score in found.scores:
        errors = (f"{score.mape:.1%}", f"{score.bias:+.1%}", f"{score.null_mape:.1%}")
        yield (score.table, score.role, str(score.rows), *errors)


def _worst(found: Result) -> Iterator[tuple[str, ...]]:
    for score in found.scores:
        for case in score.worst:
            unit = f"{case.measured:.3g}", f"{case.predicted:.3g}"
            yield (case.label, score.table, *unit, f"{case.error:+.0%}")
