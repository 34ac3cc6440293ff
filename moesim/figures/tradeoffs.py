"""Which plan: what it costs against what it gains, how it fares batch by batch, and what moves the step time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from moesim.figures import theme
from moesim.study.sweep.pareto import front as front_of

_SYMBOLS: Final = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
_GAP: Final = "\u00a0" * 4
"""Keeps a name off its mark; plain spaces would be dropped."""
_NEAR: Final = 0.04
"""Part of an axis within which two points lie on one another."""


def pareto(cost: Mapping[str, float], step_s: Mapping[str, float], *, cost_label: str, dark: bool = False) -> go.Figure:
    """Draw step time against what a plan costs, and the plans that no other plan beats in both.

    Parameters
    ----------
    cost
        Name of the plan to its cost, in the unit of ``cost_label``; less is better.
    step_s
        Name of the plan to its step time in seconds.
    cost_label
        What the cost is, with its unit.
    dark
        Whether the figure stands on dark paper.
    """
    front = pareto_front(cost, step_s)
    result = theme.figure(
        f"Step time against {cost_label.split('(', maxsplit=1)[0].strip()}",
        f"lower left is better; no plan beats those on the line in both: {', '.join(front)}",
        dark=dark,
        height=420,
        xaxis={"title": {"text": cost_label}},
        yaxis={"title": {"text": "step time on held-out steps (ms)"}, "tickformat": ".4~g"},
    )
    line = go.Scatter(
        x=[cost[name] for name in front],
        y=[step_s[name] * 1e3 for name in front],
        mode="lines",
        line={"shape": "hv", "color": theme.ink(dark), "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
        name="best of both",
        showlegend=False,
    )
    result.add_trace(line)
    names = list(step_s)
    points = go.Scatter(
        x=[cost[name] for name in names],
        y=[step_s[name] * 1e3 for name in names],
        mode="markers",
        text=names,
        cliponaxis=False,
        marker={
            "size": 13,
            "symbol": [_SYMBOLS[0] if name in front else "circle-open" for name in names],
            "color": theme.SERIES[0],
            "line": {"width": 2, "color": theme.SERIES[0]},
        },
        hovertemplate=f"%{{text}}<br>%{{y:.4g}} ms a step<br>%{{x:.4g}} {cost_label}<extra></extra>",
        showlegend=False,
    )
    result.add_trace(points)
    labels = _labels(cost, step_s)
    words = go.Scatter(
        x=[cost[name] for name in labels],
        y=[step_s[name] * 1e3 for name in labels],
        mode="text",
        text=[f"{_GAP}{text}{_GAP}" for text in labels.values()],
        textposition=_beside([cost[name] for name in labels], max(cost.values(), default=0.0)),
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )
    return result.add_trace(words)


def pareto_front(cost: Mapping[str, float], step_s: Mapping[str, float]) -> list[str]:
    """Return the plans that no other plan beats in both, cheapest first."""
    names = list(step_s)
    return [names[point] for point in front_of([cost[name] for name in names], [step_s[name] for name in names])]


def spread(
    values: Mapping[str, ArrayLike],
    labels: Sequence[str],
    *,
    title: str,
    item: str,
    value_label: str,
    reading: str = "",
    dark: bool = False,
) -> go.Figure:
    """Draw how plans fare on each batch or domain, one row a plan, one mark an item.

    Parameters
    ----------
    values
        Name of the plan to the value of each item, in the unit of ``value_label``; less is better.
    labels
        What the items are called.
    title, item, value_label, reading
        Title; what an item is; what a value is, with its unit; what to add to the subtitle.
    dark
        Whether the figure stands on dark paper.
    """
    arrays = {name: np.asarray(array, dtype=np.float64) for name, array in values.items()}
    ordered = sorted(arrays, key=lambda name: float(arrays[name].max()))
    steady = ordered[0]
    result = theme.figure(
        title,
        f"left is better; the least bad worst {item} has {steady}: {arrays[steady].max():.4g}{reading}",
        dark=dark,
        height=max(300, 190 + 38 * len(ordered)),
        xaxis={"title": {"text": value_label}},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": True},
    )
    bars = go.Scatter(
        x=[x for name in ordered for x in (arrays[name].min(), arrays[name].max(), None)],
        y=[y for name in ordered for y in (name, name, None)],
        mode="lines",
        line={"color": theme.PHASE_COLOURS["wait"], "width": 5},
        hoverinfo="skip",
        showlegend=False,
    )
    result.add_trace(bars)
    few = len(labels) <= len(theme.SERIES)
    for number, label in enumerate(labels):
        trace = go.Scatter(
            x=[arrays[name][number] for name in ordered],
            y=ordered,
            mode="markers",
            marker={
                "size": 10,
                "symbol": _SYMBOLS[number % len(_SYMBOLS)] if few else "line-ns-open",
                "color": theme.SERIES[number % len(theme.SERIES)] if few else theme.SERIES[0],
                "line": {"width": 1, "color": theme.paper(dark) if few else theme.SERIES[0]},
            },
            name=label,
            showlegend=few and len(labels) > 1,
            hovertemplate=f"%{{y}}, {item} {label}<br>{value_label}: %{{x:.4g}}<extra></extra>",
        )
        result.add_trace(trace)
    means = go.Scatter(
        x=[arrays[name].mean() for name in ordered],
        y=ordered,
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 20, "color": theme.ink(dark), "line": {"width": 3}},
        name="mean",
        hovertemplate="%{y}: mean %{x:.4g}<extra></extra>",
    )
    return result.add_trace(means)


def sensitivity(
    base_s: float, knobs: Mapping[str, tuple[tuple[str, float], tuple[str, float]]], *, dark: bool = False
) -> go.Figure:
    """Draw what each knob alone does to the step time, the strongest first.

    Parameters
    ----------
    base_s
        Step time with nothing changed, seconds.
    knobs
        Knob to two (setting, step time in seconds): turned down and turned up.
    dark
        Whether the figure stands on dark paper.
    """
    reach = {name: max(abs(s - base_s) for _, s in ends) for name, ends in knobs.items()}
    ordered = sorted(knobs, key=lambda name: -reach[name])
    strongest = ordered[0] if ordered else ""
    result = theme.figure(
        "What drives the step time",
        f"each knob alone, from {base_s * 1e3:.4g} ms; left is faster. Strongest: {strongest}",
        dark=dark,
        height=max(300, 170 + 56 * len(ordered)),
        barmode="group",
        bargap=0.3,
        xaxis={"title": {"text": "step time (ms)"}, "tickformat": ".4~g"},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False},
    )
    for end, (colour, direction) in enumerate(((theme.SERIES[0], "turned down"), (theme.SERIES[1], "turned up"))):
        label = [knobs[name][end][0] for name in ordered]
        seconds = np.array([knobs[name][end][1] for name in ordered])
        trace = go.Bar(
            base=np.full(len(ordered), base_s * 1e3),
            x=(seconds - base_s) * 1e3,
            y=ordered,
            orientation="h",
            marker={"color": colour},
            name=direction,
            text=label,
            textposition="outside",
            cliponaxis=False,
            customdata=seconds * 1e3,
            hovertemplate="%{y}: %{text}<br>%{customdata:.4g} ms a step<extra></extra>",
        )
        result.add_trace(trace)
    line = {"color": theme.ink(dark), "width": 1.5}
    result.update_layout(
        shapes=[{"type": "line", "x0": base_s * 1e3, "x1": base_s * 1e3, "y0": 0, "y1": 1, "yref": "paper",
                 "line": line}]
    )  # fmt: skip
    return result


def _labels(cost: Mapping[str, float], step_s: Mapping[str, float]) -> dict[str, str]:
    """Return the names to write: points that lie on one another share a label, at the first of them."""
    wide = max(cost.values()) - min(cost.values()) or 1.0
    high = max(step_s.values()) - min(step_s.values()) or 1.0
    shared: dict[str, list[str]] = {}
    for name in sorted(step_s, key=lambda one: step_s[one]):
        near = next(
            (first for first in shared
             if abs(cost[first] - cost[name]) < _NEAR * wide and abs(step_s[first] - step_s[name]) < _NEAR * high),
            name,
        )  # fmt: skip
        shared.setdefault(near, []).append(name)
    return {first: ", ".join(names) for first, names in shared.items()}


def _beside(x: Sequence[float], largest: float) -> list[str]:
    """Return on which side of each point its name stands: towards the middle, where there is room."""
    middle = (min(x) + largest) / 2 if x else 0.0
    return ["middle right" if value <= middle else "middle left" for value in x]
