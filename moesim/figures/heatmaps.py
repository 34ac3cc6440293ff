"""Heatmaps: who is overloaded, where bytes cross, how skewed the routing is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from moesim.base.arrays import Array
from moesim.base.units import show
from moesim.figures import theme

_MOST_NUMBERED_NODES: Final = 16
_LEAST_REACH: Final = 1.25
"""Least ratio at the end of a colour scale: rounding shall not look like imbalance."""


def load_heatmap(
    tokens: ArrayLike,
    rank_node: ArrayLike,
    *,
    layer_ids: Sequence[int] | None = None,
    title: str = "Load of every rank in every layer",
    limit: float | None = None,
    dark: bool = False,
) -> go.Figure:
    """Draw the load of every rank in every layer, relative to the layer's mean.

    Parameters
    ----------
    tokens
        Token-expert pairs computed [layers, ranks].
    rank_node
        Node of each rank [ranks]; lines are drawn between nodes.
    layer_ids
        Decoder index of each layer; default 0, 1, 2, ...
    title
        Title of the figure.
    limit
        Ratio at the end of the colour scale; give two figures the same one to compare them. Default: the largest.
    dark
        Whether the figure stands on dark paper.
    """
    load = np.asarray(tokens, dtype=np.float64)
    node = np.asarray(rank_node)
    layers = len(load)
    ratio = _over_mean(load)
    largest = max(limit if limit is not None else float(ratio.max()), _LEAST_REACH)
    names = [str(i) for i in (layer_ids if layer_ids is not None else range(layers))]
    result = theme.figure(
        title,
        f"busiest: {ratio.max():.2f} × the layer's mean; 1 is balance",
        dark=dark,
        height=max(300, min(900, 190 + 22 * layers)),
        xaxis={"title": {"text": "rank (lines: node borders)"}, "showgrid": False},
        yaxis={"title": {"text": "decoder layer"}, "autorange": "reversed", "showgrid": False, "type": "category"},
        shapes=theme.node_borders(node, layers - 0.5, dark=dark),
    )
    heat = go.Heatmap(
        z=ratio.astype(np.float32),
        y=names,
        customdata=np.stack([load, np.broadcast_to(node, load.shape)], axis=-1).astype(np.float32),
        colorscale=theme.diverging(dark, largest),
        zmin=0,
        zmax=largest,
        colorbar={"title": {"text": "× mean"}},
        hovertemplate="layer %{y}, rank %{x}, node %{customdata[1]}<br>%{z:.3f} × the layer's mean"
        "<br>%{customdata[0]:,.0f} token-expert pairs<extra></extra>",
    )
    return result.add_trace(heat)


def node_traffic(node_bytes: ArrayLike, *, steps: int = 1, dark: bool = False) -> go.Figure:
    """Draw the bytes from node to node in a step.

    Traffic inside a node runs over NVLink and is an order of magnitude larger; it is written on the diagonal in
    plain text and left out of the colours.

    Parameters
    ----------
    node_bytes
        Bytes [nodes, nodes] from row to column, sum over the steps.
    steps
        Number of steps that the bytes are the sum of.
    dark
        Whether the figure stands on dark paper.
    """
    mean = np.asarray(node_bytes, dtype=np.float64) / steps
    nodes = len(mean)
    cross = mean.copy()
    np.fill_diagonal(cross, 0.0)
    total = show(float(cross.sum()), "bytes")
    factor, unit = _unit(float(cross.max()) if nodes > 1 else float(mean.max()))
    names = [f"node {i}" for i in range(nodes)]
    coloured = cross / factor
    np.fill_diagonal(coloured, np.nan)
    result = theme.figure(
        "Bytes between nodes in a step",
        f"{total} cross nodes in a mean step, dispatch and combine; the diagonal stays inside a node (NVLink)",
        dark=dark,
        height=max(340, min(900, 200 + 44 * nodes)),
        xaxis={"title": {"text": "to"}, "showgrid": False, "type": "category"},
        yaxis={"title": {"text": "from"}, "autorange": "reversed", "showgrid": False, "type": "category"},
    )
    numbered = nodes <= _MOST_NUMBERED_NODES
    heat = go.Heatmap(
        z=coloured,
        x=names,
        y=names,
        colorscale=theme.sequential(dark),
        zmin=0,
        zmax=float(np.nanmax(coloured, initial=0.0)) or 1.0,
        hoverongaps=False,
        colorbar={"title": {"text": f"{unit} a step"}},
        texttemplate="%{text}" if numbered else "",
        text=[["" if i == j else _amount(coloured[i, j]) for j in range(nodes)] for i in range(nodes)],
        hovertemplate=f"%{{y}} to %{{x}}<br>%{{z:.4g}} {unit} a step<extra></extra>",
    )
    result.add_trace(heat)
    if numbered:
        # a map of its own without colour: text of a map shrinks with its cells, that of a scatter runs over them
        inside = go.Heatmap(
            z=np.where(np.eye(nodes, dtype=bool), mean / factor, np.nan),
            x=names,
            y=names,
            colorscale=[[0.0, "rgba(0,0,0,0)"], [1.0, "rgba(0,0,0,0)"]],
            showscale=False,
            hoverongaps=False,
            texttemplate="%{text}",
            text=[[_amount(mean[i, j] / factor) if i == j else "" for j in range(nodes)] for i in range(nodes)],
            textfont={"color": theme.quiet(dark)},
            hovertemplate=f"inside %{{y}} (NVLink)<br>%{{text}} {unit} a step<extra></extra>",
        )
        result.add_trace(inside)
    return result


def expert_loads(loads: ArrayLike, *, layer_ids: Sequence[int] | None = None, dark: bool = False) -> go.Figure:
    """Draw how skewed the routing of a trace is: the experts of each layer, hottest first.

    Parameters
    ----------
    loads
        Picks of each expert [layers, experts].
    layer_ids
        Decoder index of each layer; default 0, 1, 2, ...
    dark
        Whether the figure stands on dark paper.
    """
    picks = np.asarray(loads, dtype=np.float64)
    layers, experts = picks.shape
    order = np.argsort(-picks, axis=1, kind="stable")
    hottest_first = np.take_along_axis(picks, order, axis=1)
    ratio = _over_mean(hottest_first)
    names = [str(i) for i in (layer_ids if layer_ids is not None else range(layers))]
    hot = ratio[:, 0]
    largest = max(float(ratio.max()), _LEAST_REACH)
    result = theme.figure(
        "Load of every expert, hottest first",
        f"picks / mean of the layer; the hottest expert takes {hot.min():.1f} to {hot.max():.1f} times the mean",
        dark=dark,
        height=max(300, min(900, 190 + 22 * layers)),
        xaxis={"title": {"text": f"the {experts} experts of a layer, ordered by load"}, "showgrid": False},
        yaxis={"title": {"text": "decoder layer"}, "autorange": "reversed", "showgrid": False, "type": "category"},
    )
    heat = go.Heatmap(
        z=ratio.astype(np.float32),
        x=list(range(1, experts + 1)),
        y=names,
        customdata=order,
        colorscale=theme.diverging(dark, largest),
        zmin=0,
        zmax=largest,
        colorbar={"title": {"text": "× mean"}},
        hovertemplate="layer %{y}, expert %{customdata} (no. %{x})<br>%{z:.2f} × the layer's mean<extra></extra>",
    )
    return result.add_trace(heat)


def largest_ratio(tokens: ArrayLike) -> float:
    """Return the largest load / layer mean of [layers, ranks], for a colour scale that several figures share."""
    return float(_over_mean(np.asarray(tokens, dtype=np.float64)).max())


def _over_mean(load: Array) -> Array:
    mean = load.mean(axis=1, keepdims=True)
    ratio: Array = np.divide(load, mean, out=np.ones_like(load), where=mean > 0)
    return ratio


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _unit(largest: float) -> tuple[float, str]:
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= factor:
            return factor, unit
    return 1.0, "B"
