"""What the study of routers shows: a table in Markdown and a figure in SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

_INK, _MUTED, _LOAD, _DROP, _BYTES = "#24292f", "#6e7781", "#0072B2", "#D55E00", "#009E73"
_PANEL_W, _PANEL_H, _COLUMNS, _TOP = 212, 132, 4, 66


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table, means over seeds; losses with their range where there are several."""
    head = (
        "router | validation loss | decoded | experts a token | dropped | busiest expert | in one domain | "
        "busiest rank | between nodes | all-to-all"
    )
    lines = [f"| {head} |", "|" + "---|" * 10]
    for name, group in _by_name(rows).items():
        mean = {key: float(np.mean([row[key] for row in group])) for key in _NUMBERS}
        losses = [row["loss"] for row in group]
        spread = f" ({min(losses):.3f} to {max(losses):.3f})" if len(group) > 1 else ""
        # measured on fewer sequences: the difference is what counts
        decoded = mean["loss"] + mean["loss_decoded"] - mean["loss_few"]
        lines.append(
            f"| {name} | {mean['loss']:.3f}{spread} | {decoded:.3f} | {mean['picks']:.2f} | {mean['dropped']:.1%} | "
            f"{mean['max_over_mean']:.2f} | {mean['domain_max_over_mean']:.2f} | {mean['imbalance']:.2f} | "
            f"{mean['node_bytes'] / 1e3:.1f} KB | {mean['all_to_all_us']:.0f} us |"
        )
    return "\n".join(lines) + "\n"


_NUMBERS = (
    "loss", "loss_few", "loss_decoded", "picks", "dropped", "max_over_mean", "domain_max_over_mean", "imbalance",
    "node_bytes", "all_to_all_us",
)  # fmt: skip


def _by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    return groups


def figure(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw a panel for each router: loads of its experts from the busiest down, and bars for drops and bytes."""
    groups = _by_name(rows)
    most = max((max(row["sorted_loads"]) for row in rows), default=1.0)
    most_bytes = max((row["node_bytes"] for row in rows), default=1.0)
    lines = -(-len(groups) // _COLUMNS)
    width, height = _COLUMNS * _PANEL_W + 16, _TOP + lines * _PANEL_H
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11" fill="{_INK}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<text x="16" y="20" font-size="14" font-weight="bold">What each router makes of the same text</text>',
        '<text x="16" y="36">Load of each expert in multiples of the mean, busiest first (mean of the layers; '
        "dashed: even).</text>",
        f'<rect x="16" y="44" width="9" height="9" fill="{_DROP}"/><text x="29" y="52">picks dropped</text>'
        f'<rect x="130" y="44" width="9" height="9" fill="{_BYTES}"/>'
        '<text x="143" y="52">bytes between nodes per token and layer (full: the most of all)</text>',
    ]
    for number, (name, group) in enumerate(groups.items()):
        x, y = 16 + number % _COLUMNS * _PANEL_W, _TOP + number // _COLUMNS * _PANEL_H
        parts += _panel(x, y, name, group, most, most_bytes)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _fit(name: str, wide: float) -> str:
    """Squeeze a name that would run into the next panel."""
    return f' textLength="{wide}" lengthAdjust="spacingAndGlyphs"' if len(name) > 30 else ""


def _panel(x: int, y: int, name: str, group: Sequence[Mapping[str, Any]], most: float, most_bytes: float) -> list[str]:
    loads = np.mean([row["sorted_loads"] for row in group], axis=0)
    drop = float(np.mean([row["dropped"] for row in group]))
    carried = float(np.mean([row["node_bytes"] for row in group]))
    floor, tall, wide = y + 94, 70.0, 190.0
    step = wide / len(loads)
    bars = "".join(
        f"M{x + i * step:.1f} {floor}v{-tall * min(load / most, 1):.1f}h{step * 0.8:.1f}V{floor}z"
        for i, load in enumerate(loads)
    )
    even = floor - tall / most
    share = min(carried / most_bytes, 1.0)
    return [
        f'<text x="{x}" y="{y + 14}" font-weight="bold"{_fit(name, wide)}>{escape(name)}</text>',
        f'<path d="{bars}" fill="{_LOAD}"/>',
        f'<path d="M{x} {even:.1f}h{wide}" stroke="{_MUTED}" stroke-dasharray="3 3"/>',
        f'<text x="{x + wide}" y="{y + 30}" text-anchor="end" fill="{_MUTED}">busiest {loads[0]:.1f}</text>',
        f'<rect x="{x}" y="{floor + 4}" width="{max(wide * drop, 0.5):.1f}" height="5" fill="{_DROP}"/>',
        f'<rect x="{x}" y="{floor + 11}" width="{max(wide * share, 0.5):.1f}" height="5" fill="{_BYTES}"/>',
        f'<text x="{x}" y="{floor + 28}" fill="{_MUTED}">{drop:.1%} dropped, {carried / 1e3:.1f} KB</text>',
    ]
