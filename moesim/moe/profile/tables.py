"""From measured rows to kernel cost tables, and to a table that people read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any


def cost_tables(profile: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the rows of the first kernel of each dtype as a file of kernel cost tables; None if there is no full grid.

    Our Triton kernels where they ran (GPUs), else PyTorch's; a table names its kernel, and its device as measured.
    """
    groups = defaultdict[tuple[str, str, int, int], dict[tuple[int, int], float]](dict)
    for row in profile["experts"]:
        if row["seconds"] is not None:
            key = row["dtype"], row["kernel"], row["hidden"], row["intermediate"]
            groups[key][row["tokens_per_expert"], row["active_experts"]] = row["seconds"]
    chosen = dict[tuple[str, int, int], str]()
    for dtype, kernel, hidden, intermediate in groups:
        chosen.setdefault((dtype, hidden, intermediate), kernel)
        if kernel == "triton":
            chosen[dtype, hidden, intermediate] = kernel
    tables = []
    for (dtype, hidden, intermediate), kernel in chosen.items():
        grid = full_grid(groups[dtype, kernel, hidden, intermediate])
        if grid:
            tables.append({
                "schema": 1, "kind": "moesim-kernel-table", "device": profile["device"], "dtype": dtype,
                "hidden": hidden, "intermediate": intermediate, "kernel": f"{kernel} {dtype}, one rank's experts",
                "provenance": dict(profile["provenance"]),
                "rows": [
                    {"tokens_per_expert": m, "active_experts": a, "seconds": s} for (m, a), s in sorted(grid.items())
                ],
            })  # fmt: skip
    if not tables:
        return None
    return {"schema": 1, "kind": "moesim-kernel-tables", "processors": profile["processors"], "tables": tables}


def full_grid(rows: Mapping[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    """Return the largest full grid in the rows that holds whole lines of tokens."""
    lines = defaultdict[int, set[int]](set)
    for m, a in rows:
        lines[m].add(a)
    best: tuple[set[int], list[int]] = (set(), [])
    for line in lines.values():
        held = [m for m, other in lines.items() if line <= other]
        if len(line) * len(held) > len(best[0]) * len(best[1]):
            best = line, held
    return {(m, a): rows[m, a] for m in best[1] for a in best[0]}


def summary(profile: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, for each shape, dtype and kernel, the best rates reached and their share of the device's ceilings.

    `products` rows have at least 2,048 rows in all and count arithmetic; `decode` rows at most 16 tokens per expert and
    at least 64 MB of weights and count their bytes. `gap` is the time of the same point by torch grouped_mm over ours.
    """
    ceiling = profile["ceilings"]
    ours = {_point(row): row for row in profile["experts"] if row["kernel"] == "torch grouped_mm" and row["seconds"]}
    result = []
    shapes = {(r["hidden"], r["intermediate"], r["dtype"], r["kernel"]): None for r in profile["experts"]}
    for hidden, intermediate, dtype, kernel in shapes:
        rows = [
            r for r in profile["experts"]
            if (r["hidden"], r["intermediate"], r["dtype"], r["kernel"]) == (hidden, intermediate, dtype, kernel)
            and r["seconds"] is not None
        ]  # fmt: skip
        large = [r for r in rows if r["tokens_per_expert"] * r["active_experts"] >= 2048]
        decode = [
            r for r in rows
            if r["tokens_per_expert"] <= 16
            and 3.0 * r["active_experts"] * hidden * intermediate * (2 if dtype == "bf16" else 1) >= 64e6
        ]  # fmt: skip
        top = max((r["flops_per_s"] for r in large), default=None)
        stream = max((r["weight_bytes_per_s"] for r in decode), default=None)
        peak = ceiling.get(f"gemm_{dtype}_flops")
        ratios = [ours[_point(r)]["seconds"] / r["seconds"] for r in rows if _point(r) in ours and kernel == "triton"]
        result.append({
            "hidden": hidden, "intermediate": intermediate, "dtype": dtype, "kernel": kernel, "points": len(rows),
            "products_flops": top, "share_of_gemm": top / peak if top and peak else None,
            "decode_bytes_per_s": stream,
            "share_of_copy": stream / ceiling["copy_bytes_per_s"] if stream else None,
            "grouped_mm_over_ours": sum(ratios) / len(ratios) if ratios else None,
        })  # fmt: skip
    return result


def _point(row: Mapping[str, Any]) -> tuple[int, int, int, int]:
    return row["hidden"], row["intermediate"], row["tokens_per_expert"], row["active_experts"]
