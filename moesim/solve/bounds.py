"""Lower bounds: seconds that no placement with these slots can beat, under any dispatch policy that picks whole copies.

For every step and layer, from arguments that hold whatever the placement:

* **load**: the fullest rank computes at least the mean load, and at least its share of the experts that are active;
* **copies**: a token visits at least ``ceil(picks / slots)`` ranks, so a copy engine moves at least so many copies;
* **token sets**: a node can hold only so many experts, so part of its tokens must leave it
  (:mod:`moesim.solve.coverage`), and their bytes pass the network card on the way out and on the way home;
* **floors**: launches, attention and shared experts.

They are put together as :mod:`moesim.costs.closed_form` chains the clocks of a step, so that the bound of a step holds
for the whole step, with ranks that run ahead in one layer and lag in the next. The load argument takes the compute
model to be monotone: more tokens, or the same in more slots, never take less time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import InputError
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.placement import Flow
from moesim.solve.coverage import uncovered_tokens
from moesim.solve.objective import Fixed, every_step, fixed_parts
from moesim.trace.batching import Batches

_GRID: Final = 192
"""Points at which the compute model is sampled for its lower envelope."""
_SOME: Final = 1e-9
"""Tokens of a slot that is active and no more (expected counts can be fractions)."""


@dataclass(frozen=True, eq=False)
class BoundReport(Sealed):
    """What no placement can beat.

    Parameters
    ----------
    steps_s
        Seconds of each step, float64 [steps].
    layer_s
        Mean over steps of each layer on its own, float64 [layers].
    load_s, traffic_s
        What of it comes from the load of the ranks alone and from traffic alone, float64 [layers].
    """

    steps_s: Array
    layer_s: Array
    load_s: Array
    traffic_s: Array

    def __post_init__(self) -> None:
        seal(self, "steps_s", self.steps_s, np.float64, ("steps",))
        layers = len(seal(self, "layer_s", self.layer_s, np.float64, ("layers",)))
        for name in ("load_s", "traffic_s"):
            seal(self, name, getattr(self, name), np.float64, ("layers",), {"layers": layers})

    @property
    def step_s(self) -> float:
        """Mean seconds of a step."""
        return float(self.steps_s.mean())


def step_bound(
    batches: Batches | Sequence[Batches], cluster: Cluster, costs: Costs, slots_per_rank: int
) -> BoundReport:
    """Return seconds that no placement with so many slots can beat on these steps.

    Raises
    ------
    InputError
        If the costs are for another cluster.
    """
    if costs.cluster.digest != cluster.digest:
        raise InputError(f"bound: the costs are for cluster {costs.cluster.name!r}, not for {cluster.name!r}")
    rates = _Rates.of(costs)
    steps, alone, load, traffic = [], [], [], []
    for window, step in every_step(batches):
        part = _step(window, step, costs, slots_per_rank, rates)
        steps.append(part[0])
        alone.append(part[1])
        load.append(part[2])
        traffic.append(part[3])
    return BoundReport(np.array(steps), np.mean(alone, axis=0), np.mean(load, axis=0), np.mean(traffic, axis=0))


def _step(window: Batches, step: int, costs: Costs, slots: int, rates: _Rates) -> tuple[float, Array, Array, Array]:
    """Return the bound of the step, and of its layers alone: in all, by load, by traffic [layers]."""
    routes, home = window.routes(step), window.homes(step)
    cluster, spec = costs.cluster, costs.spec
    ranks, node = cluster.ranks, cluster.node
    fixed = fixed_parts(window, step, costs)
    gate = fixed.attention_s if costs.shared_expert == "overlap" else fixed.attention_s + fixed.shared_s
    first = float(gate.min())
    used = min(slots, spec.experts)
    valid = (routes >= 0).sum(axis=(0, 2))
    active = np.array([len(np.unique(picks[picks >= 0])) for picks in routes.transpose(1, 0, 2)])
    compute, spread = _compute_bounds(costs, valid, active, used)
    idle = float(costs.experts_s(np.zeros((ranks, used))).min())

    visits = _visits(routes, home, ranks, used)
    picks = np.zeros((len(valid), ranks))
    np.add.at(picks.T, home, (routes >= 0).sum(axis=2))
    sent, back = rates.moved(visits, picks, fixed)
    room = np.minimum(np.bincount(node) * used, spec.experts)
    by_node, by_home = uncovered_tokens(routes, home, node, room, spec.experts)
    crossing = by_node.sum(axis=1) / ranks
    sent = np.maximum(sent, crossing * rates.dispatch_s.min())
    back = np.maximum(back, crossing * rates.combine_s.min())
    floor_d, floor_c = rates.dispatch_floor_s, rates.combine_floor_s
    least_back = (by_home * rates.combine_s).min(axis=1)
    most_back = np.maximum(back, (by_home * rates.combine_s).max(axis=1))

    # all ranks have their tokens, compute and send results: the fullest rank decides when the word of all is there
    through = floor_d + np.maximum(compute, sent + spread)
    load = first + floor_d + compute + floor_c
    traffic = first + (floor_d + idle + floor_c + most_back)
    # where nobody waits for a word of all, the last rank to compute may have nothing to send
    word = floor_c if rates.everyone else 0.0
    alone = np.maximum(np.maximum(load, traffic), first + through + word)
    if rates.everyone:
        chained = first + np.maximum(through + floor_c, floor_d + idle + floor_c + least_back)
    else:
        # a rank may run ahead: only what even the first rank needs adds up
        chained = np.full(len(valid), first + floor_d + idle + floor_c) + least_back
    return float(chained[:-1].sum() + alone[-1]), alone, load, traffic


def _visits(routes: Array, home: Array, ranks: int, slots: int) -> NDArray[np.float64]:
    """Return the ranks that the tokens of each home must at least visit, float64 [layers, ranks]."""
    picks = (routes >= 0).sum(axis=2)
    least = -(-picks // slots)
    out = np.zeros((routes.shape[1], ranks))
    np.add.at(out.T, home, least)
    return out


def _compute_bounds(costs: Costs, pairs: Array, active: Array, slots: int) -> tuple[Array, Array]:
    """Return seconds [layers] that the fullest rank needs at least, and that ranks need at least on average."""
    ranks = costs.cluster.ranks
    most, mean = float(pairs.max(initial=0)), pairs / ranks
    near = np.linspace(0.0, max(4 * mean.max(initial=0), 1.0), _GRID)
    grid = np.unique(np.concatenate([near, np.geomspace(1.0, max(most, 2.0), _GRID // 4), mean]))
    filled = np.zeros((len(grid), ranks, slots))
    filled[:, :, 0] = grid[:, None]
    # a model that is not monotone is bounded from below by its running minimum
    seconds = np.minimum.accumulate(costs.experts_s(filled)[::-1], axis=0)[::-1]
    compute = np.array([_fullest(grid, seconds, float(total)) for total in pairs])
    some = _SOME * np.tril(np.ones((slots + 1, slots)), -1)[:, None, :].repeat(ranks, axis=1)
    busy = costs.experts_s(some).min(axis=1)
    compute = np.maximum(compute, busy[np.minimum(-(-active // ranks), slots)])
    fastest = seconds.min(axis=1)
    return compute, np.array([_envelope(grid, fastest, value) for value in mean])


def _fullest(grid: Array, seconds: Array, total: float) -> float:
    """Return the least time in which ranks can share ``total`` pairs, from samples ``seconds`` [grid, ranks]."""
    if np.ptp(seconds, axis=1).max() == 0:
        # equal ranks: one of them holds the mean
        return float(seconds[np.searchsorted(grid, total / seconds.shape[1], side="right") - 1, 0])
    for limit in np.unique(seconds):
        # a rank may hold anything below the first sample that takes longer
        within = (seconds <= limit).sum(axis=0)
        room = np.where(within < len(grid), grid[np.minimum(within, len(grid) - 1)], np.inf)
        if room[within > 0].sum() >= total:
            return float(limit)
    return float(seconds.max())


def _envelope(grid: Array, seconds: Array, mean: float) -> float:
    """Return the largest convex function below the samples, at ``mean``: what ranks need on average at least."""
    # between two samples the time is at least that of the left one
    x = np.concatenate([[0.0], grid[1:], grid[-1:]])
    y = np.concatenate([seconds[:1], seconds[:-1], seconds[-1:]])
    left, right = x <= mean, x >= mean
    xl, yl, xr, yr = x[left][:, None], y[left][:, None], x[right][None, :], y[right][None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.where(xr > xl, (yl * (xr - mean) + yr * (mean - xl)) / (xr - xl), np.minimum(yl, yr))
    return float(at.min())


@dataclass(frozen=True, eq=False)
class _Rates:
    """Seconds per copy that crosses nodes, into each rank [ranks], and what exchanges cost without one."""

    costs: Costs
    dispatch_s: Array
    combine_s: Array
    dispatch_floor_s: float
    combine_floor_s: float
    everyone: bool

    @classmethod
    def of(cls, costs: Costs) -> _Rates:
        cluster = costs.cluster
        nothing = np.zeros((1, cluster.ranks))
        empty = _local_flow(costs, nothing, nothing, nothing[0])
        sent, back = costs.dispatch(empty), costs.combine(empty)
        seconds = []
        probe = _crossing_flow(costs)
        copies = float(probe.pairs.sum())
        directions: tuple[Any, ...] = ("dispatch", "combine")
        for direction in directions:
            size = costs.transfer(probe, direction).total_bytes / copies if copies else 0.0
            seconds.append(size * _common_inbound(cluster))
        if costs.transport == "allgather":
            # its volume does not depend on routing
            seconds = [np.zeros(cluster.ranks)] * 2
        return cls(
            costs, seconds[0], seconds[1], float(sent.floor_s.min()), float(back.floor_s.min()),
            bool(sent.everyone and back.everyone),
        )  # fmt: skip

    def moved(self, visits: Array, picks: Array, fixed: Fixed) -> tuple[Array, Array]:
        """Return seconds beyond the floor [layers], mean over ranks, when no copy leaves its home rank."""
        flow = _local_flow(self.costs, visits, picks, fixed.tokens)
        sent, back = self.costs.dispatch(flow), self.costs.combine(flow)
        extra = (timing.arrive_s.mean(axis=1) - timing.floor_s for timing in (sent, back))
        dispatch_s, combine_s = (np.maximum(part, 0.0) for part in extra)
        return dispatch_s, combine_s


def _local_flow(costs: Costs, visits: Array, picks: Array, tokens: Array) -> Flow:
    """Return a flow in which tokens are served at home: ``visits`` copies, ``picks`` pairs [layers, ranks]."""
    cluster = costs.cluster
    ranks, node = cluster.ranks, cluster.node
    layers = len(visits)
    every = np.arange(ranks)
    copies = np.zeros((layers, ranks, ranks))
    copies[:, every, every] = visits
    pairs = np.zeros((layers, ranks, ranks))
    pairs[:, every, every] = picks
    by_node = np.zeros((layers, ranks, cluster.nodes))
    by_node[:, every, node] = visits
    position = np.array([np.count_nonzero(node[:r] == node[r]) for r in range(ranks)])
    forward = np.zeros((layers, ranks, int(np.bincount(node).max())))
    forward[:, every, position] = visits
    slots = np.zeros((layers, ranks, 1))
    slots[:, :, 0] = picks
    return Flow(tokens.astype(np.int64), node, slots, pairs, copies, by_node, forward)


def _crossing_flow(costs: Costs) -> Flow:
    """Return a flow of one copy from every rank to its landing rank in every other node."""
    cluster = costs.cluster
    ranks, node = cluster.ranks, cluster.node
    every = np.arange(ranks)
    copies = np.zeros((1, ranks, ranks))
    copies[0, every[:, None], cluster.landing] = 1.0
    copies[0, every, every] = 0.0
    by_node = np.ones((1, ranks, cluster.nodes))
    by_node[0, every, node] = 0.0
    position = np.array([np.count_nonzero(node[:r] == node[r]) for r in range(ranks)])
    forward = np.zeros((1, ranks, int(np.bincount(node).max())))
    forward[0, every, position] = copies[0].sum(axis=0)
    slots = copies.sum(axis=1)[:, :, None]
    return Flow(np.ones(ranks, np.int64), node, slots, copies, copies, by_node, forward)


def _common_inbound(cluster: Cluster) -> Array:
    """Return seconds per byte [ranks] of the slowest link that everything from other nodes to a rank must pass."""
    out = np.zeros(cluster.ranks)
    for rank in range(cluster.ranks):
        remote = cluster.node != cluster.node[rank]
        if remote.any():
            traffic = np.zeros((cluster.ranks, cluster.ranks))
            traffic[remote, rank] = 1.0
            common = cluster.paths.link_bytes(traffic) >= remote.sum() * (1 - 1e-9)
            out[rank] = (common / cluster.link_bandwidth).max()
    return out
