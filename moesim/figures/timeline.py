"""One step as a Gantt chart: what every rank does when, in microseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.figures import theme

_MOST_BARS: Final = 20_000


def timeline(
    spans: ArrayLike,
    phases: Sequence[str],
    *,
    step: int | None = None,
    layers: tuple[int, int] | None = None,
    layer_ids: Sequence[int] | None = None,
    dark: bool = False,
) -> go.Figure:
    """Draw the phases of every rank in one step.

    Parameters
    ----------
    spans
        Structured array with the fields step, layer, rank, phase, start_s, stop_s, wait_s; times count from the
        step's start. An interval begins with the wait for others, if there is any.
    phases
        Names of the phase codes.
    step
        Which step; default: the first that the spans hold.
    layers
        First layer and the one after the last; default all. Layers are numbered 0..L-1.
    layer_ids
        Decoder index of each layer, for the hover text; default 0, 1, 2, ...
    dark
        Whether the figure stands on dark paper.

    Raises
    ------
    InputError
        If the spans hold no such step or layers, or more bars than a browser draws.
    """
    rows = np.asarray(spans)
    if not len(rows):
        raise InputError("timeline: there are no spans; simulate with spans=True")
    step = int(rows["step"].min()) if step is None else step
    rows = rows[rows["step"] == step]
    if layers is not None:
        rows = rows[(rows["layer"] >= layers[0]) & (rows["layer"] < layers[1])]
    rows = rows[rows["stop_s"] > rows["start_s"]]
    if not len(rows):
        raise InputError(f"timeline: no spans in step {step}, layers {layers or 'all'}")
    if len(rows) > _MOST_BARS:
        raise InputError(
            f"timeline: {len(rows)} bars are more than a browser draws ({_MOST_BARS}); choose fewer layers"
        )
    ranks = int(rows["rank"].max()) + 1
    first, last = int(rows["layer"].min()), int(rows["layer"].max())
    names = np.asarray(layer_ids) if layer_ids is not None else np.arange(last + 1)
    span_us = (rows["stop_s"].max() - rows["start_s"].min()) * 1e6
    result = theme.figure(
        f"Timeline of step {step}",
        f"decoder layers {names[first]} to {names[last]}, {span_us:,.0f} us in all",
        dark=dark,
        height=max(320, min(1000, 170 + 15 * ranks)),
        barmode="overlay",
        bargap=0.15,
        xaxis={"title": {"text": "time since the step began (us)"}, "tickformat": ",.0f"},
        yaxis={"title": {"text": "rank"}, "autorange": "reversed", "showgrid": False, "dtick": max(1, ranks // 16)},
    )
    for phase in theme.ORDER[:-1]:
        mine = rows[rows["phase"] == list(phases).index(phase)]
        _add(result, mine, phase, names, mine["start_s"] + mine["wait_s"], mine["stop_s"])
    waiting = rows[rows["wait_s"] > 0]
    _add(result, waiting, "wait", names, waiting["start_s"], waiting["start_s"] + waiting["wait_s"])
    return result


def _add(result: go.Figure, rows: Array, phase: str, names: Array, start_s: Array, stop_s: Array) -> None:
    if not len(rows):
        return
    trace = go.Bar(
        base=start_s * 1e6,
        x=(stop_s - start_s) * 1e6,
        y=rows["rank"],
        customdata=names[rows["layer"]],
        orientation="h",
        marker={"color": theme.PHASE_COLOURS[phase], "line": {"width": 0}},
        name=theme.PHASE_LABELS[phase],
        hovertemplate=f"{theme.PHASE_LABELS[phase]}, rank %{{y}}, layer %{{customdata}}"
        "<br>from %{base:,.1f} us for %{x:,.1f} us<extra></extra>",
    )
    result.add_trace(trace)
