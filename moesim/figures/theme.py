"""One look for every figure: a palette that colour-blind readers can tell apart, light and dark.

Category colours are those of Okabe and Ito (2008). Scales differ in lightness as well as in hue, and busy links
are drawn wider, so that nothing is told by hue alone.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from moesim.base.arrays import Array

PHASE_COLOURS: Final = {
    "attention": "#009E73",
    "dispatch": "#0072B2",
    "experts": "#E69F00",
    "combine": "#56B4E9",
    "shared": "#CC79A7",
    "wait": "#A8ADB5",
}
"""Colour of each phase of a step, the same in every figure."""

PHASE_LABELS: Final = {
    "attention": "attention and gate",
    "dispatch": "dispatch",
    "experts": "routed experts",
    "combine": "combine",
    "shared": "shared expert",
    "wait": "waiting for others",
}
"""What each phase is called in legends."""

ORDER: Final = ("attention", "dispatch", "experts", "combine", "shared", "wait")
"""Order in which phases are stacked and listed."""

SERIES: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D3B", "#7F7F7F")
"""Colours of things that are neither phases nor amounts, such as plans and domains; told apart by symbols too."""

BUSY_STEPS: Final = (0.05, 0.2, 0.4, 0.7)
"""Bounds of the five classes of link utilisation."""

_TOP: Final = 92
_BARE_TOP: Final = 34
"""Pixels above a figure: with its title; without, where one row of a legend has room."""
_FONT: Final = "Source Sans, system-ui, -apple-system, Segoe UI, Roboto, sans-serif"
_INK: Final = {False: "#1f2430", True: "#e8eaed"}
_PAPER: Final = {False: "#ffffff", True: "#0e1117"}
_QUIET: Final = {False: "#626a76", True: "#9aa3af"}
_GRID: Final = {False: "#e3e6ea", True: "#2b303a"}
_BUSY: Final = {
    False: ("#d3d7dd", "#fdd49e", "#fc8d59", "#d7301f", "#7f0000"),
    True: ("#3a404b", "#7a4a21", "#c8692b", "#fd9a55", "#fff0d0"),
}
# lightness falls away from the middle on light paper and rises from it on dark paper
_DIVERGING: Final = {
    False: ("#053061", "#4393c3", "#d1e5f0", "#f7f7f7", "#fddbc7", "#d6604d", "#67001f"),
    True: ("#a6d8ff", "#4393c3", "#21445e", "#1b1e25", "#5e2d24", "#d6604d", "#ffc7b0"),
}
_SEQUENTIAL: Final = {
    False: ("#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"),
    True: ("#141a24", "#17375e", "#2171b5", "#6baed6", "#deebf7"),
}


def ink(dark: bool) -> str:
    """Return the colour of text and lines that must be seen first."""
    return _INK[dark]


def quiet(dark: bool) -> str:
    """Return the colour of text that is read second."""
    return _QUIET[dark]


def paper(dark: bool) -> str:
    """Return the colour behind a figure."""
    return _PAPER[dark]


def grid(dark: bool) -> str:
    """Return the colour of grid lines and rules."""
    return _GRID[dark]


def busy_colours(dark: bool) -> tuple[str, ...]:
    """Return one colour for each class of link utilisation, idle first."""
    return _BUSY[dark]


def diverging(dark: bool, largest: float) -> list[tuple[float, str]]:
    """Return the scale of ratios from 0 to ``largest``, more than 1, whose middle colour stands at 1."""
    colours = _DIVERGING[dark]
    middle = (len(colours) - 1) // 2
    below = [(i / middle / largest, colour) for i, colour in enumerate(colours[:middle])]
    above = [1 / largest + (1 - 1 / largest) * i / middle for i in range(middle)]
    above.append(1.0)  # not a rounding error beside it: plotly would take a scale of its own
    return [*below, *zip(above, colours[middle:], strict=True)]


def around_zero(dark: bool) -> list[tuple[float, str]]:
    """Return the scale of amounts around zero, whose middle colour stands in the middle."""
    return _scale(_DIVERGING[dark])


def sequential(dark: bool) -> list[tuple[float, str]]:
    """Return the scale of amounts from zero."""
    return _scale(_SEQUENTIAL[dark])


def node_borders(node: Array, top: float, *, dark: bool, bottom: float = -0.5, **line: Any) -> list[dict[str, Any]]:
    """Return lines between the ranks of different nodes, as plotly shapes; ``node`` int [ranks].

    One list to be given at once: adding shapes one by one takes plotly seconds.
    """
    style = {"color": ink(dark), "width": 2, **line}
    edges = (np.flatnonzero(np.diff(node)) + 0.5).tolist()
    return [{"type": "line", "x0": x, "x1": x, "y0": bottom, "y1": top, "line": style} for x in edges]


def template(dark: bool = False) -> go.layout.Template:
    """Return the common look as a plotly template, for figures made elsewhere too."""
    axis = {"gridcolor": _GRID[dark], "zerolinecolor": _GRID[dark], "linecolor": _GRID[dark], "automargin": True,
            "title": {"standoff": 10}}  # fmt: skip
    layout = {
        "colorway": list(PHASE_COLOURS.values()),
        "font": {
            "family": _FONT,
            "size": 13,
            "color": _INK[dark],
        },
        "title": {
            "x": 0,
            "y": 1,
            "xref": "container",
            "yref": "container",
            "yanchor": "top",
            "pad": {"l": 12, "t": 14},
            "font": {"size": 16},
        },
        "paper_bgcolor": _PAPER[dark],
        "plot_bgcolor": _PAPER[dark],
        "margin": {"l": 64, "r": 24, "t": _TOP, "b": 56},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "normal"},
        "hoverlabel": {"bgcolor": _PAPER[dark], "font": {"color": _INK[dark]}},
        "xaxis": axis,
        "yaxis": axis,
    }
    return go.layout.Template(layout=layout)


def figure(title: str, subtitle: str = "", *, dark: bool = False, height: int = 420, **layout: Any) -> go.Figure:
    """Return an empty figure with the common look.

    Parameters
    ----------
    title, subtitle
        What the figure answers, and how to read it.
    dark
        Whether it stands on dark paper.
    height
        Pixels; the width is that of the page.
    layout
        More of plotly's layout.
    """
    text = {"text": f"<b>{title}</b>", "subtitle": {"text": subtitle, "font": {"size": 12.5}}}
    return go.Figure(layout={"template": template(dark), "title": text, "height": height, **layout})


def untitled(figure: go.Figure) -> tuple[str, str, go.Figure]:
    """Return title, subtitle and the figure without them, for pages that write both as text, which wraps.

    Without a title above it, a legend may take as many rows as a narrow window asks for.
    """
    title = figure.layout.title
    words = str(title.text or "").removeprefix("<b>").removesuffix("</b>")
    bare = go.Figure(figure)
    bare.update_layout(title=None, margin={"t": _BARE_TOP}, height=figure.layout.height - _TOP + _BARE_TOP)
    return words, str(title.subtitle.text or ""), bare


def _scale(colours: tuple[str, ...]) -> list[tuple[float, str]]:
    return [(i / (len(colours) - 1), colour) for i, colour in enumerate(colours)]
