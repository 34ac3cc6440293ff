"""The anytime curve: how good the best plan so far is, against the seconds that were spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from moesim.figures import theme


def anytime(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    bound_s: float | None = None,
    baselines: Mapping[str, float] | None = None,
    until_s: float | None = None,
    dark: bool = False,
) -> go.Figure:
    """Draw the best score so far of solvers against their seconds.

    Parameters
    ----------
    curves
        Name of the solver to (seconds spent, best step time so far in seconds), in order.
    bound_s
        Seconds that no placement can beat, drawn as a line.
    baselines
        Name to step time of plans that took no search, drawn as dotted lines.
    until_s
        Seconds until which the best so far held, where that is longer than the last point.
    dark
        Whether the figure stands on dark paper.
    """
    best = {name: min(score for _, score in points) for name, points in curves.items() if points}
    if best:
        name = min(best, key=lambda one: best[one])
        gap = f", at most {best[name] / bound_s - 1:.0%} from the optimum" if bound_s else ""
        subtitle = f"best so far: {name}, {best[name] * 1e3:.4g} ms a step{gap}; lower is better"
    else:
        subtitle = "waiting for the first plan; lower is better"
    result = theme.figure(
        "Best plan so far",
        subtitle,
        dark=dark,
        height=360,
        xaxis={"title": {"text": "time spent (s)"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "step time on fitted traffic (ms)"}, "tickformat": ".4~g"},
    )
    for number, (name, points) in enumerate(curves.items()):
        if not points:
            continue
        colour = theme.SERIES[number % len(theme.SERIES)]
        reached = list(points)
        if until_s is not None and until_s > reached[-1][0]:
            reached.append((until_s, reached[-1][1]))
        trace = go.Scatter(
            x=[seconds for seconds, _ in reached],
            y=[score * 1e3 for _, score in reached],
            mode="lines+markers",
            line={"shape": "hv", "width": 2.5, "color": colour},
            marker={"size": [6] * len(points) + [0] * (len(reached) - len(points)), "color": colour},
            name=name,
            showlegend=True,
            hovertemplate=f"{name}<br>after %{{x:.1f}} s: %{{y:.4g}} ms a step<extra></extra>",
        )
        result.add_trace(trace)
    lines = [(f"{name}", value, "dot") for name, value in (baselines or {}).items()]
    if bound_s is not None:
        lines.append(("bound: no placement is faster", bound_s, "dash"))
    if not best:
        # without a point plotly would invent axes
        high = max((value for _, value, _ in lines), default=None)
        result.update_xaxes(range=[0, until_s or 1])
        result.update_yaxes(range=[0, high * 1.2e3] if high else None, showticklabels=high is not None)
        result.add_trace(go.Scatter(x=[None], y=[None], showlegend=False))
    result.update_layout(
        shapes=[
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value * 1e3, "y1": value * 1e3,
             "line": {"color": theme.ink(dark), "width": 1.5, "dash": dash}}
            for _, value, dash in lines
        ],
        annotations=[
            {"xref": "paper", "x": 1, "xanchor": "right", "y": value * 1e3, "yanchor": "bottom", "showarrow": False,
             "text": f"{name}, {value * 1e3:.4g} ms", "font": {"size": 11.5}}
            for name, value, _ in lines
        ],
    )  # fmt: skip
    return result
