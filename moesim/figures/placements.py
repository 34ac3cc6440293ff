"""Placements: which expert moves where between two of them, and which rank the others wait for."""

from __future__ import annotations

from typing import Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.figures import theme
from moesim.placement import Placement

_NEITHER, _BOTH, _LEAVES, _COMES = 0, 1, 2, 3
DIFF_COLOURS: Final = {"stays": theme.PHASE_COLOURS["wait"], "leaves": "#E69F00", "comes": "#0072B2"}
"""Colour of a copy that is in both placements, only in the first, only in the second."""


def placement_diff(
    before: Placement,
    after: Placement,
    layer: int,
    rank_node: ArrayLike,
    *,
    names: tuple[str, str] = ("before", "after"),
    layer_name: int | str | None = None,
    dark: bool = False,
) -> go.Figure:
    """Draw which rank holds which expert of a layer in two placements.

    Parameters
    ----------
    before, after
        Two placements of the same layers, ranks and experts.
    layer
        MoE layer, 0..L-1.
    rank_node
        Node of each rank [ranks]; lines are drawn between nodes.
    names
        What the placements are called.
    layer_name
        What the layer is called; default its number.
    dark
        Whether the figure stands on dark paper.

    Raises
    ------
    InputError
        If the placements differ in layers, ranks or experts.
    """
    sizes = [(one.layers, one.ranks, one.num_experts) for one in (before, after)]
    if sizes[0] != sizes[1]:
        raise InputError(f"placement diff: (layers, ranks, experts) are {sizes[0]} and {sizes[1]}; take two alike")
    old, new = before.has[layer], after.has[layer]
    code = np.where(old & new, _BOTH, np.where(old, _LEAVES, np.where(new, _COMES, _NEITHER)))
    comes, stays = int((code == _COMES).sum()), int((code == _BOTH).sum())
    leaves = int((code == _LEAVES).sum())
    node = np.asarray(rank_node)
    colours = [theme.paper(dark), *DIFF_COLOURS.values()]
    # four flat bands: a colour scale is continuous, so each colour begins and ends at its own borders
    scale = [(edge / 4, colour) for step, colour in enumerate(colours) for edge in (step, step + 1)]
    result = theme.figure(
        f"Copies of layer {layer if layer_name is None else layer_name}: {names[0]} against {names[1]}",
        f"{comes} copies come, {leaves} leave, {stays} stay",
        dark=dark,
        height=max(360, min(900, 200 + 7 * before.num_experts)),
        xaxis={"title": {"text": "rank (lines: node borders)"}, "showgrid": False},
        yaxis={"title": {"text": "expert"}, "autorange": "reversed", "showgrid": False},
        shapes=theme.node_borders(node, before.num_experts - 0.5, dark=dark, width=1.5),
    )
    words = np.array(["on neither", "on both", f"only in {names[0]}", f"only in {names[1]}"])
    heat = go.Heatmap(
        z=code.astype(np.float32),
        colorscale=scale,
        zmin=-0.5,
        zmax=3.5,
        xgap=0.5,
        ygap=0.5,
        showscale=False,
        customdata=words[code],
        hovertemplate="expert %{y}, rank %{x}: %{customdata}<extra></extra>",
    )
    result.add_trace(heat)
    labels = ("in both: stays", f"only in {names[0]}: leaves", f"only in {names[1]}: comes")
    for colour, label in zip(DIFF_COLOURS.values(), labels, strict=True):
        marker = {"size": 11, "symbol": "square", "color": colour}
        entry = go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=label)
        result.add_trace(entry)
    return result


def losses(placement: Placement, loads: ArrayLike, rank_node: ArrayLike, *, dark: bool = False) -> go.Figure:
    """Draw what the loss of each GPU and of each node takes away: experts that are nowhere else.

    Parameters
    ----------
    placement
        The placement.
    loads
        Picks of each expert [layers, experts].
    rank_node
        Node of each rank [ranks].
    dark
        Whether the figure stands on dark paper.
    """
    has, picks, node = placement.has, np.asarray(loads, dtype=np.float64), np.asarray(rank_node)
    numbers = np.unique(node)
    parts = {"GPU": has, "node": np.stack([has[..., node == one].any(axis=2) for one in numbers], axis=2)}
    labels = {"GPU": [f"rank {i}" for i in range(placement.ranks)], "node": [f"node {i}" for i in numbers]}
    places = {"GPU": np.arange(placement.ranks), "node": np.array([np.flatnonzero(node == i).mean() for i in numbers])}
    widths = {"GPU": np.full(placement.ranks, 0.55), "node": np.array([(node == i).sum() - 0.1 for i in numbers])}
    result = theme.figure(
        "What a failure takes away",
        dark=dark,
        height=380,
        barmode="overlay",
        xaxis={"title": {"text": "rank"}, "showgrid": False},
        yaxis={"title": {"text": "picks that want a lost expert (%)"}, "rangemode": "tozero"},
    )
    said = []
    # nodes first, so that their GPUs stand before them
    for part in ("node", "GPU") if len(numbers) > 1 else ("GPU",):
        alone = parts[part] & (parts[part].sum(axis=2, keepdims=True) == 1)
        gone = alone.sum(axis=(0, 1))
        share = np.einsum("ler,le->r", alone, picks) / max(picks.sum(), 1e-300)
        worst = int(share.argmax())
        said.append(
            f"{(gone == 0).sum()} of {count(len(gone), part)} take no expert away; the worst, {labels[part][worst]}, "
            f"takes {gone[worst]} of {has.shape[0] * placement.num_experts} ({share[worst]:.1%} of the picks)"
        )
        bars = go.Bar(
            x=places[part],
            y=share * 100,
            width=widths[part],
            name=f"loss of a {part}",
            marker={"color": theme.PHASE_COLOURS["wait"] if part == "node" else theme.SERIES[1], "line": {"width": 0}},
            customdata=np.stack([labels[part], gone], axis=-1),
            hovertemplate="%{customdata[0]}: %{customdata[1]} experts are nowhere else<br>%{y:.2f}% of the picks"
            "<extra></extra>",
        )
        result.add_trace(bars)
    return result.update_layout(title_subtitle_text=". ".join(reversed(said)))


def stragglers(
    critical_s: ArrayLike, wait_s: ArrayLike, rank_node: ArrayLike, *, steps: int = 1, dark: bool = False
) -> go.Figure:
    """Draw which ranks hold the others up, and which wait.

    Parameters
    ----------
    critical_s
        Seconds of each rank on the critical path [ranks], sum over layers, phases and steps.
    wait_s
        Seconds that each rank waits for others [ranks], sum over layers and steps.
    rank_node
        Node of each rank [ranks].
    steps
        Number of steps that both are the sum of.
    dark
        Whether the figure stands on dark paper.
    """
    holds = np.asarray(critical_s, dtype=np.float64) / steps * 1e3
    waits = np.asarray(wait_s, dtype=np.float64) / steps * 1e3
    node = np.asarray(rank_node)
    worst = int(holds.argmax())
    result = theme.figure(
        "Stragglers: who holds the step up, and who waits",
        f"rank {worst} (node {node[worst]}) is on the critical path longest: {holds[worst]:.3g} ms, "
        f"{holds[worst] / max(holds.sum(), 1e-300):.0%} of a step; bars down wait for others",
        dark=dark,
        height=380,
        barmode="relative",
        bargap=0.15,
        xaxis={"title": {"text": "rank"}, "showgrid": False},
        yaxis={"title": {"text": "time in a mean step (ms)"}},
        shapes=[
            {**line, "yref": "paper"} for line in theme.node_borders(node, 1, bottom=0, dark=dark, width=1, dash="dot")
        ],
    )
    for name, values, sign, colour in (
        ("on the critical path: others wait for it", holds, 1, theme.PHASE_COLOURS["experts"]),
        (theme.PHASE_LABELS["wait"], waits, -1, theme.PHASE_COLOURS["wait"]),
    ):
        bars = go.Bar(
            x=np.arange(len(values)),
            y=sign * values,
            name=name,
            marker={"color": colour},
            customdata=np.stack([values, node], axis=-1),
            hovertemplate=f"rank %{{x}}, node %{{customdata[1]}}<br>{name}: %{{customdata[0]:.3g}} ms<extra></extra>",
        )
        result.add_trace(bars)
    return result
