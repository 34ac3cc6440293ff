"""What the traffic is like: drift between windows, experts picked together, and the mix of domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from moesim.base.arrays import Array
from moesim.figures import theme

_MOST_NUMBERED: Final = 10
_LEAST_BITS: Final = 0.02
"""Least divergence at the end of a colour scale: noise shall not look like drift."""
_MOST_LIFT: Final = 3.0
"""End of the colour scale of co-activation, in doublings."""

_FACTORS: Final = {-3: "1/8", -2: "1/4", -1: "1/2", 0: "1", 1: "2", 2: "4", 3: "8"}
"""Doublings as factors."""


def divergence(
    bits: ArrayLike, names: Sequence[str], *, title: str, reading: str = "", dark: bool = False
) -> go.Figure:
    """Draw how different the expert loads of windows or domains are from one another.

    Parameters
    ----------
    bits
        Jensen-Shannon divergence of each two, in bits, 0..1 [items, items].
    names
        What the items are called.
    title, reading
        Title of the figure, and what to add to its subtitle.
    dark
        Whether the figure stands on dark paper.
    """
    values = np.array(bits, dtype=np.float64)
    count = len(values)
    apart = values[~np.eye(count, dtype=bool)] if count > 1 else np.zeros(1)
    shown = values.copy()
    np.fill_diagonal(shown, np.nan)
    subtitle = f"Jensen-Shannon divergence in bits: 0 is the same load, 1 no expert in common; mean {apart.mean():.3f}"
    result = theme.figure(
        title,
        f"{subtitle}{reading}",
        dark=dark,
        height=max(320, min(640, 170 + 34 * count)),
        xaxis={"showgrid": False, "type": "category"},
        yaxis={"autorange": "reversed", "showgrid": False, "type": "category"},
    )
    numbered = count <= _MOST_NUMBERED
    text = [["" if i == j else f"{values[i, j]:.3f}" for j in range(count)] for i in range(count)]
    heat = go.Heatmap(
        z=shown,
        x=list(names),
        y=list(names),
        colorscale=theme.sequential(dark),
        zmin=0,
        zmax=max(float(apart.max()), _LEAST_BITS),
        hoverongaps=False,
        texttemplate="%{text}" if numbered else "",
        text=text,
        colorbar={"title": {"text": "bits"}},
        hovertemplate="%{y} against %{x}<br>%{z:.4f} bits<extra></extra>",
    )
    return result.add_trace(heat)


def coactivation(lift: ArrayLike, *, layer: int | str, loads: ArrayLike | None = None, dark: bool = False) -> go.Figure:
    """Draw which experts of a layer tokens pick together, more or less often than popularity alone would give.

    Parameters
    ----------
    lift
        Share of each pair over the share that popularity alone would give [experts, experts]; NaN on the diagonal.
    layer
        What the layer is called.
    loads
        Picks of each expert [experts]; experts that are picked together are put side by side.
    dark
        Whether the figure stands on dark paper.
    """
    values = np.array(lift, dtype=np.float64)
    order = _side_by_side(values)
    with np.errstate(divide="ignore"):
        doublings = np.clip(np.log2(values[np.ix_(order, order)]), 0.0, _MOST_LIFT)
    np.fill_diagonal(doublings, np.nan)
    above = values[np.triu_indices(len(values), 1)]
    above = above[np.isfinite(above)]
    strongest = float(above.max()) if above.size else 1.0
    often = float((above >= 2).mean()) if above.size else 0.0
    result = theme.figure(
        f"Experts picked together in layer {layer}",
        f"{often:.0%} of pairs meet twice as often as popularity alone would give, or more; the strongest "
        f"{strongest:.1f} times as often",
        dark=dark,
        height=560,
        xaxis={"title": {"text": "experts, those picked together side by side"}, "showgrid": False,
               "showticklabels": False, "ticks": "", "constrain": "domain"},
        yaxis={"autorange": "reversed", "showgrid": False, "showticklabels": False, "ticks": "", "scaleanchor": "x",
               "constrain": "domain"},
    )  # fmt: skip
    picks = np.zeros(len(order)) if loads is None else np.asarray(loads, dtype=np.float64)[order]
    share = picks / picks.sum() if picks.sum() else picks
    heat = go.Heatmap(
        z=doublings.astype(np.float32),
        customdata=np.stack(
            [np.broadcast_to(order[:, None], values.shape), np.broadcast_to(order[None], values.shape),
             values[np.ix_(order, order)], np.broadcast_to(share[:, None], values.shape)], axis=-1,
        ).astype(np.float32),
        colorscale=theme.sequential(dark),
        zmin=0,
        zmax=_MOST_LIFT,
        hoverongaps=False,
        colorbar={"title": {"text": "× chance"}, "tickvals": [0, 1, 2, 3], "ticktext": ["≤ 1", "2", "4", "≥ 8"]},
        hovertemplate="expert %{customdata[0]} with expert %{customdata[1]}<br>%{customdata[2]:.2f} × as often as by "
        "chance<extra></extra>",
    )  # fmt: skip
    return result.add_trace(heat)


def domain_experts(
    loads: ArrayLike, domains: Sequence[str], tokens: ArrayLike, *, layer: int | str, dark: bool = False
) -> go.Figure:
    """Draw which experts of a layer each domain uses, relative to all traffic.

    Parameters
    ----------
    loads
        Picks of each expert by domain [domains, experts].
    domains
        Names of the domains.
    tokens
        Tokens of each domain [domains].
    layer
        What the layer is called.
    dark
        Whether the figure stands on dark paper.
    """
    picks = np.asarray(loads, dtype=np.float64)
    count = np.asarray(tokens, dtype=np.float64)
    total = picks.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = picks / picks.sum(axis=1, keepdims=True)
        ratio = np.nan_to_num(share / (total / total.sum()), nan=1.0)
        doublings = np.clip(np.log2(ratio), -_MOST_LIFT, _MOST_LIFT)
    # experts of one domain stand together
    order = np.lexsort((-ratio.max(axis=0), ratio.argmax(axis=0)))
    names = [f"{name} ({part:.0%})" for name, part in zip(domains, count / max(count.sum(), 1), strict=True)]
    result = theme.figure(
        f"Experts of each domain in layer {layer}",
        "share of a domain's picks over that of all traffic; red: its own experts. In brackets: its share of tokens",
        dark=dark,
        height=max(300, 170 + 30 * len(names)),
        xaxis={"title": {"text": f"the {picks.shape[1]} experts, grouped by the domain that favours them"},
               "showgrid": False, "showticklabels": False, "ticks": ""},
        yaxis={"autorange": "reversed", "showgrid": False, "type": "category"},
    )  # fmt: skip
    # a low figure has a short colour bar
    ticks = list(_FACTORS) if len(names) > 4 else [-3, 0, 3]
    heat = go.Heatmap(
        z=doublings[:, order].astype(np.float32),
        y=names,
        customdata=np.stack([np.broadcast_to(order, ratio.shape), ratio[:, order]], axis=-1).astype(np.float32),
        colorscale=theme.around_zero(dark),
        zmin=-_MOST_LIFT,
        zmax=_MOST_LIFT,
        colorbar={"title": {"text": "× all"}, "tickvals": ticks, "ticktext": [_FACTORS[tick] for tick in ticks]},
        hovertemplate="%{y}, expert %{customdata[0]}<br>%{customdata[1]:.2f} × its share of all traffic<extra></extra>",
    )  # fmt: skip
    return result.add_trace(heat)


def _side_by_side(lift: Array) -> Array:
    """Return an order of experts in which those picked together stand together: by the second eigenvector."""
    near = np.clip(np.nan_to_num(lift, nan=0.0), 0, 8)
    near = (near + near.T) / 2
    np.fill_diagonal(near, 0)
    degree = near.sum(axis=1)
    if len(near) < 3 or not (degree > 0).all():
        return np.arange(len(near))
    scale = 1 / np.sqrt(degree)
    _, vectors = np.linalg.eigh(np.eye(len(near)) - scale[:, None] * near * scale[None])
    fiedler = vectors[:, 1] * scale
    # the sign of an eigenvector is arbitrary: let the first expert stand on the left half
    order: Array = np.argsort(fiedler if fiedler[0] <= 0 else -fiedler, kind="stable")
    return order
