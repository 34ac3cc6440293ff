"""Lines over time, or over a knob."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from moesim.base.arrays import Array
from moesim.figures import theme

_DASHES = ("solid", "dash", "dot", "dashdot")
_NEAR = 0.06
"""Part of the height within which two texts would lie on one another."""


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
    heights = [np.asarray(y, np.float64) for _, y in curves.values()] + [np.array(list((levels or {}).values()))]
    every = np.concatenate(heights)
    written = _together(levels or {}, _NEAR * float(np.nanmax(every) - np.nanmin(every)) if every.size else 0.0)
    for at in (levels or {}).values():
        label = {"annotation_text": written[at], "annotation_position": "bottom right"} if at in written else {}
        result.add_hline(y=at, **label, **quiet)
    return result


def _together(levels: Mapping[str, float], near: float) -> dict[float, str]:
    """Return height to what is written there: levels that are near share the place of the lowest of them."""
    shared: dict[float, list[str]] = {}
    for text, at in sorted(levels.items(), key=lambda level: level[1]):
        place = next((one for one in shared if at - one < near), at)
        shared.setdefault(place, []).append(text)
    return {place: ", ".join(texts) for place, texts in shared.items()}
