"""Predicted against measured, every scored row."""

from __future__ import annotations

from typing import Final

import numpy as np
import plotly.graph_objects as go

from moesim.figures import theme
from moesim.validate.rows import Case
from moesim.validate.score import Result

_MOST: Final = 400
"""Points of one table; of more, evenly spaced ones stand for all."""


def predicted_measured(found: Result, *, dark: bool = False) -> go.Figure:
    """Draw the model's seconds over the measured ones, held-out rows filled, fitted ones hollow; ratios left out."""
    times = [case for case in found.cases if _is_time(case)]
    error = float(np.mean([abs(case.error) for case in times])) if times else 0.0
    figure = theme.figure(
        "Predicted against measured",
        f"{len(times)} measured times, {error:.0%} off on average; on the line the model is right",
        dark=dark,
        height=620,
        xaxis={"title": {"text": "measured (us)"}, "type": "log"},
        yaxis={"title": {"text": "predicted (us)"}, "type": "log"},
    )
    tables: dict[str, list[Case]] = {}
    for case in times:
        tables.setdefault(case.table.split(" ")[0], []).append(case)
    for name, cases in tables.items():
        shown = cases[:: -(-len(cases) // _MOST)]
        figure.add_trace(
            go.Scatter(
                x=[case.measured * 1e6 for case in shown],
                y=[case.predicted * 1e6 for case in shown],
                mode="markers",
                name=name,
                text=[case.label for case in shown],
                marker={
                    "size": 5,
                    "opacity": 0.6,
                    "symbol": ["circle-open" if case.role == "calibrate" else "circle" for case in shown],
                },
                hovertemplate="%{text}<br>measured %{x:.4g} us, predicted %{y:.4g} us<extra></extra>",
            )
        )
    if times:
        ends = [1e6 * f(case.measured for case in times) for f in (min, max)]
        line = {"color": theme.ink(dark), "width": 1}
        figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", line=line, showlegend=False, hoverinfo="skip"))
    return figure


def _is_time(case: Case) -> bool:
    return "ratio" not in case.table and not case.table.startswith("balance_effects")
