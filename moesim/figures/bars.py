"""Bars: which plan is faster and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from moesim.figures import theme

_ALIKE: Final = 5e-4
"""Part of a step time that is not called a difference."""


def comparison(
    splits: Mapping[str, Mapping[str, float]], *, bound_s: float | None = None, dark: bool = False
) -> go.Figure:
    """Draw the step time of several plans, split by the phase that the critical path runs through.

    Parameters
    ----------
    splits
        Name of the plan to seconds per phase; the phases of a plan add up to its step time.
    bound_s
        Seconds that no placement can beat, drawn as a line.
    dark
        Whether the figure stands on dark paper.
    """
    totals = {name: sum(split.values()) for name, split in splits.items()}
    ordered = sorted(splits, key=lambda name: totals[name])
    best = ordered[0]
    level = totals[ordered[-1]] <= totals[best] * (1 + _ALIKE)
    first = best if len(ordered) == 1 else "all alike" if level else f"fastest: {best}"
    below = f", {totals[best] / bound_s - 1:.1%} above the bound" if bound_s else ""
    result = theme.figure(
        "Step time on held-out steps",
        f"{first}, {totals[best] * 1e3:.4g} ms{below}; split by the phase on the critical path",
        dark=dark,
        height=200 + 36 * len(ordered),
        barmode="stack",
        bargap=0.3,
        xaxis={"title": {"text": "mean time of a step (ms)"}, "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False},
    )
    for phase in theme.ORDER:
        seconds = np.array([splits[name].get(phase, 0.0) for name in ordered])
        if not seconds.any():
            continue
        trace = go.Bar(
            x=seconds * 1e3,
            y=ordered,
            orientation="h",
            name=theme.PHASE_LABELS[phase],
            marker={"color": theme.PHASE_COLOURS[phase]},
            hovertemplate=f"%{{y}}: {theme.PHASE_LABELS[phase]} %{{x:.4g}} ms<extra></extra>",
        )
        result.add_trace(trace)
    totals_text = go.Scatter(
        x=[totals[name] * 1e3 for name in ordered],
        y=ordered,
        mode="text",
        text=[f" {totals[name] * 1e3:.4g}" for name in ordered],
        textposition="middle right",
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )
    result.add_trace(totals_text)
    if bound_s is not None:
        line = {"color": theme.ink(dark), "width": 2, "dash": "dash"}
        at = {"x0": bound_s * 1e3, "x1": bound_s * 1e3, "y0": 0, "y1": 1, "yref": "paper"}
        result.update_layout(shapes=[{"type": "line", "line": line, **at}])
        # shapes have no legend of their own
        entry = go.Scatter(x=[None], y=[ordered[0]], mode="lines", line=line, name="bound")
        result.add_trace(entry)
    return result


def layer_split(
    split_s: Mapping[str, ArrayLike], *, layer_ids: Sequence[int] | None = None, dark: bool = False
) -> go.Figure:
    """Draw what a mean rank does in each layer of a step.

    Parameters
    ----------
    split_s
        Phase, or ``"wait"``, to mean seconds of a rank and step [layers].
    layer_ids
        Decoder index of each layer; default 0, 1, 2, ...
    dark
        Whether the figure stands on dark paper.
    """
    arrays = {phase: np.asarray(split_s[phase], dtype=np.float64) for phase in theme.ORDER if phase in split_s}
    arrays = {phase: seconds for phase, seconds in arrays.items() if seconds.any()} or arrays
    layers = len(next(iter(arrays.values())))
    names = [str(i) for i in (layer_ids if layer_ids is not None else range(layers))]
    total = sum(float(values.sum()) for values in arrays.values())
    waiting = float(arrays["wait"].sum()) / total if "wait" in arrays and total else 0.0
    result = theme.figure(
        "Where a rank's time goes, layer by layer",
        f"mean over ranks and steps; {waiting:.0%} of it is waiting for slower ranks",
        dark=dark,
        height=380,
        barmode="stack",
        bargap=0.25,
        xaxis={"title": {"text": "decoder layer"}, "type": "category", "showgrid": False},
        yaxis={"title": {"text": "time (us)"}, "rangemode": "tozero"},
    )
    for phase, seconds in arrays.items():
        trace = go.Bar(
            x=names,
            y=seconds * 1e6,
            name=theme.PHASE_LABELS[phase],
            marker={"color": theme.PHASE_COLOURS[phase]},
            hovertemplate=f"layer %{{x}}: {theme.PHASE_LABELS[phase]} %{{y:,.1f}} us<extra></extra>",
        )
        result.add_trace(trace)
    return result
