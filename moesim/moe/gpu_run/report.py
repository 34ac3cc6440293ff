"""The summary of a run: phases, and the figures that its artefacts hold, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moesim.moe.gpu_run.phases import Setting


def table(phases: dict[str, dict[str, Any]], setting: Setting) -> str:
    """Return the summary."""
    kind = (
        "dry run on a CPU with a tiny model: no figure here is a measurement of anything"
        if setting.dry
        else setting.device
    )
    lines = [f"# GPU run ({kind})", "", "| phase | status | seconds | note |", "|---|---|---|---|"]
    for name, state in phases.items():
        lines.append(f"| {name} | {state['status']} | {state['seconds']:.0f} | {state['note'] or '-'} |")
    facts = list(_figures(setting.work))
    if facts:
        lines += ["", "| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts)]
    return "\n".join(lines) + "\n"


def _figures(work: Path) -> Iterator[tuple[str, str]]:
    machine = _json(work / "facts.json")
    for name in ("device", "driver", "cuda", "torch", "triton", "commit"):
        if name in machine:
            yield name, str(machine[name])
    steps = _lines(work / "model" / "metrics.jsonl")
    if steps:
        last = steps[-1]
        seconds = max(float(last.get("elapsed_s", 0.0)), 1e-9)
        yield "training tokens", f"{last['tokens']:,}"
        yield "training tokens/s", f"{last['tokens'] / seconds:,.0f}"
    losses = _lines(work / "model" / "evaluation.jsonl")
    if losses:
        for domain, loss in losses[-1].get("domains", {}).items():
            yield f"validation loss, {domain}", f"{loss:.3f}"
    for name, value in _json(work / "card.json").items():
        yield name, f"{value:.4g}" if isinstance(value, float) else str(value)
    for part in ("fit", "eval"):
        path = work / f"bundled-moe-{part}.parquet"
        if path.is_file():
            import pyarrow.parquet as pq

            try:
                rows = f"{pq.read_metadata(path).num_rows:,}"
            except (OSError, ValueError) as error:
                # a summary that fails would lose all that was done
                rows = f"not readable: {error}"
            yield f"tokens of the {part} trace", f"{rows} ({path.stat().st_size:,} bytes)"
    profile = _json(work / "profile" / "profile.json")
    for name, value in profile.get("ceilings", {}).items():
        yield name, f"{value:.4g}"
    for row in profile.get("summary", []):
        shares = [f"{row[key]:.0%} of {what}" for key, what in _SHARES.items() if row.get(key) is not None]
        if row.get("grouped_mm_over_ours") is not None:
            shares.append(f"grouped_mm takes {row['grouped_mm_over_ours']:.2f} of its time")
        yield f"{row['kernel']}, {row['hidden']} x {row['intermediate']} {row['dtype']}", ", ".join(shares) or "-"


_SHARES = {"share_of_gemm": "the GEMM rate", "share_of_copy": "the copy bandwidth"}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text("utf-8")
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
