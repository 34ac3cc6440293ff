"""The cluster drawn by tier, its links coloured by how busy they are."""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from moesim.base.arrays import Array
from moesim.base.units import count, show
from moesim.cluster import Cluster
from moesim.figures import theme

_WIDTHS: Final = (0.6, 1.2, 1.8, 2.6, 3.6)
_NODE_GAP: Final = 1.5
_MOST_LABELS: Final = 24
_IN_NODE, _GPU, _NIC, _FABRIC = 0, 1, 2, 3


def topology(cluster: Cluster, utilisation: ArrayLike | None = None, *, dark: bool = False) -> go.Figure:
    """Draw a cluster: NVLink switches, GPUs, NICs, leaf and spine switches from bottom to top.

    Parameters
    ----------
    cluster
        The cluster.
    utilisation
        Part of the time each directed link is busy [links], 0..1; a cable shows its busier direction. None: the
        wiring alone.
    dark
        Whether the figure stands on dark paper.
    """
    x, y = topology_layout(cluster)
    busy = np.zeros(cluster.links) if utilisation is None else np.asarray(utilisation, dtype=np.float64)
    # the two directions of a cable are links 2k and 2k + 1
    cable = busy.reshape(-1, 2).max(axis=1)
    link = 2 * np.arange(len(cable)) + busy.reshape(-1, 2).argmax(axis=1)
    if utilisation is None:
        subtitle = (
            f"{count(cluster.ranks, 'GPU')} in {count(cluster.nodes, 'node')}, {count(cluster.links // 2, 'cable')}"
        )
    else:
        hot = int(busy.argmax())
        subtitle = f"busiest link: {cluster.link_name[hot]}, {busy[hot]:.0%} of the time"
    result = theme.figure(
        f"Topology {cluster.name}",
        subtitle,
        dark=dark,
        height=480,
        margin={"b": 12},
        xaxis={"visible": False},
        yaxis={"visible": False, "range": [-0.4, float(y.max()) + 0.5]},
        hovermode="closest",
    )
    _draw_links(result, cluster, x, y, cable, link, shown=utilisation is not None, dark=dark)
    _draw_vertices(result, cluster, x, y, dark)
    return result


def topology_layout(cluster: Cluster) -> tuple[Array, Array]:
    """Return coordinates of every vertex, float64 [vertices] each: columns by node, rows by tier."""
    count, gpus = len(cluster.vertices), len(cluster.paths.node)
    near: list[set[int]] = [set() for _ in range(count)]
    for a, b in zip(cluster.link_from.tolist(), cluster.link_to.tolist(), strict=True):
        near[a].add(b)
    y = _rows(cluster, near, gpus)
    x = np.full(count, np.nan)
    x[:gpus] = np.arange(gpus) + _NODE_GAP * np.concatenate([[0], np.cumsum(np.diff(cluster.paths.node) != 0)])
    width = float(x[:gpus].max())
    for row in (_IN_NODE, _NIC):
        for vertex in np.flatnonzero(y == row):
            below = [x[other] for other in near[vertex] if other < gpus] or [
                x[far] for other in near[vertex] for far in near[other] if far < gpus
            ]
            x[vertex] = float(np.mean(below)) if below else width / 2
    for level in np.unique(y[y >= _FABRIC]):
        members = np.flatnonzero(y == level)
        x[members] = (np.arange(len(members)) + 0.5) / len(members) * width
    return x, y


def _rows(cluster: Cluster, near: list[set[int]], gpus: int) -> Array:
    y = np.full(len(cluster.vertices), -1.0)
    y[:gpus] = _GPU
    for number, name in enumerate(cluster.vertices[gpus:], start=gpus):
        last = name.rsplit(".", 1)[-1]
        if last.startswith("nic") and "." in name:
            y[number] = _NIC
        elif last == "switch" and "." in name:
            y[number] = _IN_NODE
    # fabric switches stand as many rows up as they are hops away from a GPU or NIC
    queue = deque(int(v) for v in np.flatnonzero((y == _GPU) | (y == _NIC)))
    while queue:
        vertex = queue.popleft()
        for other in near[vertex]:
            if y[other] < 0:
                y[other] = max(y[vertex] + 1, _FABRIC)
                queue.append(other)
    y[y < 0] = _FABRIC
    return y


def _draw_links(
    result: go.Figure, cluster: Cluster, x: Array, y: Array, cable: Array, link: Array, *, shown: bool, dark: bool
) -> None:
    edges = (0.0, *theme.BUSY_STEPS, np.inf)
    group = np.digitize(cable, theme.BUSY_STEPS) if shown else np.zeros(len(cable), dtype=int)
    for number, colour in enumerate(theme.busy_colours(dark)):
        members = np.flatnonzero(group == number)
        if not len(members):
            continue
        upper = "100%" if number == len(theme.BUSY_STEPS) else f"{edges[number + 1]:.0%}"
        ends = [(cluster.link_from[2 * k], cluster.link_to[2 * k]) for k in members]
        # one trace a class: plotly has no colour per segment; None lifts the pen
        trace = go.Scatter(
            x=[p for a, b in ends for p in (x[a], x[b], None)],
            y=[p for a, b in ends for p in (y[a], y[b], None)],
            mode="lines",
            line={"color": colour, "width": _WIDTHS[number] if shown else 1.0},
            name=f"{edges[number]:.0%} to {upper} busy" if shown else "link",
            showlegend=shown,
            hoverinfo="skip",
        )
        result.add_trace(trace)
    middle = [((x[a] + x[b]) / 2, (y[a] + y[b]) / 2) for a, b in zip(*_ends(cluster), strict=True)]
    text = [
        _link_text(cluster, int(chosen), float(part) if shown else None)
        for chosen, part in zip(link, cable, strict=True)
    ]
    hover = go.Scatter(
        x=[p[0] for p in middle],
        y=[p[1] for p in middle],
        mode="markers",
        marker={"size": 8, "opacity": 0},
        text=text,
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    result.add_trace(hover)


def _ends(cluster: Cluster) -> tuple[Array, Array]:
    return cluster.link_from[::2], cluster.link_to[::2]


def _link_text(cluster: Cluster, link: int, busy: float | None) -> str:
    rate = show(float(cluster.link_bandwidth[link]), "bandwidth")
    use = "" if busy is None else f"<br>busy {busy:.1%} of the time"
    return f"{cluster.link_name[link]} ({cluster.link_tier[link]})<br>{rate} effective{use}"


def _draw_vertices(result: go.Figure, cluster: Cluster, x: Array, y: Array, dark: bool) -> None:
    gpus = len(cluster.paths.node)
    rank = {int(member): number for number, member in enumerate(cluster.paths.members)}
    text = [f"{name} = rank {rank[i]}" if i in rank else name for i, name in enumerate(cluster.vertices)]
    fabric = y >= _FABRIC
    for mask, symbol, size in ((y < _FABRIC, "circle", 7), (fabric, "square", 13)):
        members = np.flatnonzero(mask)
        if not len(members):
            continue
        idle = [i < gpus and i not in rank for i in members]
        trace = go.Scatter(
            x=x[members],
            y=y[members],
            mode="markers",
            marker={
                "symbol": symbol,
                "size": size,
                "color": [theme.paper(dark) if off else theme.ink(dark) for off in idle],
                "line": {"color": theme.ink(dark), "width": 1},
            },
            customdata=[text[i] for i in members],
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
        )
        result.add_trace(trace)
    notes = [
        {"x": 0, "xref": "paper", "xanchor": "right", "y": level, "text": name, "showarrow": False, "xshift": -6}
        for level, name in ((_IN_NODE, "NVLink"), (_GPU, "GPUs"), (_NIC, "NICs"))
        if (y == level).any()
    ]
    switches = np.flatnonzero(fabric)
    if len(switches) <= _MOST_LABELS:
        notes += [
            {"x": x[i], "y": y[i], "text": cluster.vertices[i], "showarrow": False, "yshift": 16,
             "bgcolor": theme.paper(dark), "borderpad": 1}
            for i in switches
        ]  # fmt: skip
    result.update_layout(annotations=notes)
