"""Trade-offs: every point of a study in two columns, and those that no other beats; lines over time or over a knob."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from moesim.base.arrays import Array
from moesim.figures import theme

_DASHES = ("solid", "dash", "dot", "dashdot")


def tradeoff(
    x: ArrayLike,
    y: ArrayLike,
    front: ArrayLike,
    *,
    x_title: str,
    y_title: str,
    title: str = "",
    groups: Sequence[str] | None = None,
    labels: Sequence[str] = (),
    dark: bool = False,
) -> go.Figure:
    """Draw points and their Pareto front.

    Parameters
    ----------
    x, y
        Values of each point ``[points]``.
    front
        Numbers of the points on the front, in order of x.
    groups
        What colours each point ``[points]``.
    labels
        What hovering shows ``[points]``.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    best = np.asarray(front, np.int64)
    result = theme.figure(
        title or f"{y_title} against {x_title}",
        f"{len(best)} of {int(np.isfinite(a + b).sum())} points are beaten by no other (line)",
        dark=dark,
        height=460,
        xaxis={"title": {"text": x_title}},
        yaxis={"title": {"text": y_title}},
    )
    line = {"color": theme.ink(dark), "width": 1.2, "dash": "dot", "shape": "linear"}
    result.add_trace(go.Scatter(x=a[best], y=b[best], mode="lines", line=line, hoverinfo="skip", name="Pareto front"))
    names = list(groups) if groups is not None else [""] * len(a)
    texts = list(labels) or [""] * len(a)
    for number, name in enumerate(dict.fromkeys(names)):
        chosen = [i for i, one in enumerate(names) if one == name and np.isfinite(a[i] + b[i])]
        marker = {
            "color": theme.SERIES[number % len(theme.SERIES)],
            "size": [10 if i in best else 7 for i in chosen],
            "symbol": number % 5,
            "opacity": 0.85,
        }
        result.add_trace(
            go.Scatter(
                x=a[chosen], y=b[chosen], mode="markers", marker=marker, name=name or "points",
                text=[texts[i] for i in chosen], hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
                showlegend=bool(name),
            )
        )  # fmt: skip
    return result


def lines(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    subtitle: str = "",
    x_title: str,
    y_title: str,
    x_log: bool = False,
    markers: bool = False,
    steps: bool = False,
    marks: Mapping[str, float] | None = None,
    levels: Mapping[str, float] | None = None,
    dark: bool = False,
) -> go.Figure:
    """Draw curves over one axis.

    Parameters
    ----------
    curves
        Name to x and y ``[points]``.
    steps
        Whether a value holds until the next point.
    marks, levels
        Text to x of vertical lines, and to y of horizontal ones.
    """
    result = theme.figure(
        title,
        subtitle,
        dark=dark,
        height=440,
        xaxis={"title": {"text": x_title}, "type": "log" if x_log else "linear"},
        yaxis={"title": {"text": y_title}},
    )
    for number, (name, (x, y)) in enumerate(curves.items()):
        values: tuple[Array, Array] = np.asarray(x, np.float64), np.asarray(y, np.float64)
        result.add_trace(
            go.Scatter(
                x=values[0], y=values[1], name=name, mode="lines+markers" if markers else "lines",
                line={
                    "color": theme.SERIES[number % len(theme.SERIES)], "width": 2,
                    "dash": _DASHES[number // len(theme.SERIES) % len(_DASHES)], "shape": "hv" if steps else "linear",
                },
            )
        )  # fmt: skip
    quiet = {"line_dash": "dot", "line_width": 1, "line_color": theme.ink(dark)}
    for text, at in (marks or {}).items():
        result.add_vline(x=at, annotation_text=text, annotation_position="top", **quiet)
    for text, at in (levels or {}).items():
        result.add_hline(y=at, annotation_text=text, annotation_position="bottom right", **quiet)
    return result
