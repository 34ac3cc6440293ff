"""The verb profile: what expert kernels take on the device at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.base.errors import InputError, MissingExtra
from moesim.cli import options as opt
from moesim.cli import screen

if TYPE_CHECKING:
    from collections.abc import Iterator


def profile(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the profile; a run that was killed goes on."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="torch device; cpu tries the command out and its tables say CPU.")
    ] = "cuda",
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Shape: a preset, or bundled; repeatable. Default: six of the field."),
    ] = None,
    tokens: Annotated[str | None, typer.Option(metavar="M,M,...", help="Tokens per expert.")] = None,
    active: Annotated[str | None, typer.Option(metavar="A,A,...", help="Active experts.")] = None,
    minutes: Annotated[float | None, typer.Option(metavar="M", help="Time budget.")] = None,
    seconds: Annotated[float, typer.Option(metavar="S", help="How long one case is measured.")] = 0.03,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Measure nothing: predict each shape of these kernel tables from the others."
        ),
    ] = None,
    json: opt.Json = False,
) -> None:
    """Measure expert kernels, copies, attention and all-to-all, and write kernel cost tables (extra `gpu`).

    `--compute DIR/kernel-tables.json` then makes solve, simulate and compare use them.
    """
    if check is not None:
        _check(check, json)
        return
    if output is None:
        raise InputError("profile: give a folder with --output, or tables to check with --check")
    try:
        from moesim.moe.profile import Plan
        from moesim.moe.profile import profile as run
    except ModuleNotFoundError as error:
        if error.name in {"torch", "tokenizers", "safetensors"}:
            raise MissingExtra(str(error.name), "gpu") from None
        raise
    changes: dict[str, Any] = {"minutes": minutes, "seconds": seconds, "small": device.startswith("cpu")}
    if model:
        changes["models"] = tuple(model)
    for name, text in (("tokens", tokens), ("active", active)):
        if text is not None:
            changes[name] = _numbers(name, text)
    with screen.progress() as say:
        found = run(output, Plan(**changes), device=device, say=say)
    if json:
        screen.print_json({name: found[name] for name in ("device", "gpu", "complete", "ceilings", "summary")})
        return
    screen.print_facts([("device", found["device"]), *((k, f"{v:.3g}") for k, v in found["ceilings"].items())])
    columns = ("shape", "kernel", "points", "TFLOP/s", "of GEMM", "decode GB/s", "of copy", "grouped_mm / ours")
    screen.print_table(columns, _cells(found["summary"]), title="Best rates")
    notes = ["products of at least 2,048 rows; decode: at most 16 tokens per expert, weight bytes over time"]
    if not found["gpu"]:
        notes.append("a CPU was measured: these tables try the command out and stand for no GPU")
    if not found["complete"]:
        notes.append("the budget ended the run; give the same folder again and it goes on")
    screen.print_notes(notes)
    screen.say(f"wrote {output}")


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise InputError(f"--{name} {text}: expected whole numbers from 1, separated by commas")
    return values


def _cells(rows: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    def show(value: float | None, scale: float, form: str) -> str:
        return "-" if value is None else format(value / scale, form)

    for row in rows:
        yield (
            f"{row['hidden']} x {row['intermediate']} {row['dtype']}", row["kernel"], str(row["points"]),
            show(row["products_flops"], 1e12, ".3g"), show(row["share_of_gemm"], 1, ".0%"),
            show(row["decode_bytes_per_s"], 1e9, ".4g"), show(row["share_of_copy"], 1, ".0%"),
            show(row["grouped_mm_over_ours"], 1, ".2f"),
        )  # fmt: skip


def _check(path: Path, json: bool) -> None:
    """Predict each shape from the others."""
    from moesim.costs.table import read_tables, rows_of
    from moesim.costs.transfer import leave_out
    from moesim.spec import BF16, FP8_BLOCK

    held = read_tables(path)
    rows = list[dict[str, Any]]()
    for dtype in dict.fromkeys(table.dtype for table in held.tables):
        tables = [table for table in held.tables if table.dtype == dtype]
        errors = leave_out(rows_of(tables), FP8_BLOCK if dtype == "fp8" else BF16, held.processors)
        for (hidden, intermediate), (count, error, bias) in errors.items():
            rows.append({
                "dtype": dtype, "hidden": hidden, "intermediate": intermediate, "rows": count, "mape": error,
                "bias": bias,
            })  # fmt: skip
    total = sum(row["rows"] for row in rows)
    mean = sum(row["rows"] * row["mape"] for row in rows) / total
    if json:
        screen.print_json({"device": held.tables[0].device, "rows": rows, "mape": mean})
        return
    cells = [
        (f"{r['hidden']} x {r['intermediate']} {r['dtype']}", str(r["rows"]), f"{r['mape']:.1%}", f"{r['bias']:+.1%}")
        for r in rows
    ]
    screen.print_table(
        ("shape left out", "rows", "error", "bias"), [*cells, ("all", str(total), f"{mean:.1%}", "")],
        title=f"Each shape predicted from the others, {held.tables[0].device}",
    )  # fmt: skip
