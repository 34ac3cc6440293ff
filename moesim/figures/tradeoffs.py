"""Which plan: what it costs against what it gains, how it fares batch by batch, and what moves the step time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from moesim.base.arrays import Array
from moesim.figures import theme
from moesim.study.sweep.pareto import front

_SYMBOLS: Final = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
_NEAR: Final = 0.04
"""Part of an axis within which two points lie on one another."""


def tradeoff(
    x: ArrayLike,
    y: ArrayLike,
    *,
    x_title: str,
    y_title: str,
    x_goal: str = "min",
    y_goal: str = "min",
    title: str = "",
    groups: Sequence[str] | None = None,
    group_title: str = "",
    labels: Sequence[str] = (),
    names: Sequence[str] = (),
    dark: bool = False,
) -> go.Figure:
    """Draw points, and those that no other point beats in both: filled, on a line.

    Parameters
    ----------
    x, y
        Values of each point ``[points]``; points that are not finite in both are left out.
    x_title, y_title
        What the values are, with their units.
    x_goal, y_goal
        ``"min"`` or ``"max"``: which way each is better.
    title
        Title; default: what stands against what.
    groups
        What colours each point ``[points]``.
    group_title
        What tells groups apart, before their names.
    labels
        What hovering shows ``[points]``; default: the names.
    names
        What is written beside each point ``[points]``; points that lie on one another share a place.
    dark
        Whether the figure stands on dark paper.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    best = front(a, b, x_goal, y_goal)
    usable = np.isfinite(a) & np.isfinite(b)
    corner = f"{'lower' if y_goal == 'min' else 'upper'} {'left' if x_goal == 'min' else 'right'} is better"
    which = f": {', '.join(names[i] for i in best)}" if names else ""
    result = theme.figure(
        title or f"{_bare(y_title)} against {_bare(x_title)}",
        f"{corner}; {len(best)} of {int(usable.sum())} are beaten by no other in both (line){which}",
        dark=dark,
        height=460,
        xaxis={"title": {"text": x_title}},
        yaxis={"title": {"text": y_title}},
        legend={"title": {"text": group_title, "font": {"size": 13}}},
    )
    # from best x to best y, the better y of the next point is had from its x on, whichever way is better
    line = {"color": theme.ink(dark), "width": 1.5, "dash": "dot", "shape": "hv"}
    result.add_trace(go.Scatter(x=a[best], y=b[best], mode="lines", line=line, hoverinfo="skip", name="Pareto front",
                                legendrank=2000))  # fmt: skip
    of = list(groups) if groups is not None else [""] * len(a)
    texts = list(labels) or list(names) or [""] * len(a)
    for number, name in enumerate(dict.fromkeys(of)):
        chosen = [i for i, one in enumerate(of) if one == name and usable[i]]
        symbol = _SYMBOLS[number % len(_SYMBOLS)]
        colour = theme.SERIES[number % len(theme.SERIES)]
        marker = {
            "color": colour,
            "size": [12 if i in best else 9 for i in chosen],
            "symbol": [symbol if i in best else f"{symbol}-open" for i in chosen],
            "line": {"width": 1.5, "color": colour},
        }
        result.add_trace(
            go.Scatter(
                x=a[chosen], y=b[chosen], mode="markers", marker=marker, name=name or "points", cliponaxis=False,
                text=[texts[i] for i in chosen], customdata=[texts[i] for i in chosen],
                hovertemplate=f"%{{text}}<br>{y_title}: %{{y:.4g}}<br>{x_title}: %{{x:.4g}}<extra></extra>",
                showlegend=bool(name),
            )
        )  # fmt: skip
    if names and usable.any():
        written = _together(a, b, usable, names)
        middle = (float(a[usable].min()) + float(a[usable].max())) / 2
        result.update_layout(
            annotations=[
                # above the line, towards the middle, where there is room; on paper of its own, where a line crosses it
                {"x": a[i], "y": b[i], "text": text, "showarrow": False, "yshift": 9, "yanchor": "bottom",
                 **({"xanchor": "left", "xshift": 6} if a[i] <= middle else {"xanchor": "right", "xshift": -6}),
                 "bgcolor": theme.paper(dark), "borderpad": 1, "font": {"size": 12}}
                for i, text in written.items()
            ]
        )  # fmt: skip
    return result


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
    few = len(labels) <= len(theme.SERIES)
    where = "" if few else f"; worst: {labels[int(arrays[steady].argmax())]}"
    result = theme.figure(
        title,
        f"left is better; the least bad worst {item} has {steady}: {arrays[steady].max():.4g}{reading}{where}",
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


def _bare(title: str) -> str:
    """Return what a value is, without its unit."""
    return title.split("(", maxsplit=1)[0].strip()


def _together(x: Array, y: Array, usable: Array, names: Sequence[str]) -> dict[int, str]:
    """Return point to the names to write there: points that lie on one another share the place of the first of them."""
    wide, high = (float(np.ptp(values[usable])) or 1.0 for values in (x, y))
    shared: dict[int, list[str]] = {}
    for i in sorted(np.flatnonzero(usable).tolist(), key=lambda i: float(y[i])):
        near = next(
            (first for first in shared if abs(x[first] - x[i]) < _NEAR * wide and abs(y[first] - y[i]) < _NEAR * high),
            i,
        )
        shared.setdefault(near, []).append(names[i])
    return {first: ", ".join(found) for first, found in shared.items()}
