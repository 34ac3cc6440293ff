"""Max-min fair sharing: progressive filling, event by event, on flat incidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled
from moesim.costs.networks.parts import land, timing
from moesim.costs.ports import ports
from moesim.costs.types import Timing, Transfer

if TYPE_CHECKING:
    from moesim.cluster import Cluster

_SAME = 1e-12  # flows whose ends differ by less than this part of the phase end together


def max_min(transfer: Transfer, cluster: Cluster) -> Timing:
    """Time a transfer by fluid max-min fair sharing.

    One flow per leg and rank pair that has bytes. All legs flow at once (pipelined); the copy engine of a rank is a
    link that the flows of its leg share, beside the links of their path. Exact, and slow: for phases that overlap,
    and for finish times per rank.
    """
    layers, ranks = transfer.messages.shape
    link_bytes = np.zeros((layers, cluster.links))
    latency = ports(cluster).latency_s
    arrive, farthest = np.zeros((layers, ranks)), np.zeros(layers)
    for layer in range(layers):
        problem = _Problem(transfer, cluster, layer)
        ends = fill(problem.volume, problem.start, problem.link, problem.share, problem.capacity)
        row = slice(layer, layer + 1)
        first = 0
        for leg, out_s, in_s, (source, target) in zip(
            transfer.legs, transfer.out_s, transfer.in_s, problem.pairs, strict=True
        ):
            finish = np.zeros((1, ranks, ranks))
            finish[0, source, target] = ends[first : first + len(source)]
            first += len(source)
            arrive[row] = land(leg[row], finish, out_s[row], in_s[row], latency, arrive[row], farthest[row])
        link_bytes[layer] = problem.link_bytes(cluster.links)
    return timing(transfer, cluster, arrive, farthest, link_bytes)


class _Problem:
    """Flows of one layer on flat incidence; copy engines are links beyond those of the cluster."""

    def __init__(self, transfer: Transfer, cluster: Cluster, layer: int) -> None:
        ranks = cluster.ranks
        self.pairs, flow, link, share, capacity, volume = [], [], [], [], [cluster.link_bandwidth], []
        count, engines = 0, cluster.links
        for leg, out_s, in_s in zip(transfer.legs, transfer.out_s, transfer.in_s, strict=True):
            load = leg[layer]
            source, target = np.nonzero(load)
            self.pairs.append((source, target))
            f, on, part = cluster.paths.flows(source, target)
            every = count + np.arange(len(source))
            flow += [f + count, every, every]
            link += [on, engines + source, engines + ranks + target]
            share += [part, np.ones(len(source)), np.ones(len(source))]
            volume.append(load[source, target])
            for seconds, bytes_ in ((out_s[layer], load.sum(axis=1)), (in_s[layer], load.sum(axis=0))):
                limit = np.full(ranks, np.inf)
                np.divide(bytes_, seconds, out=limit, where=(seconds > 0) & (bytes_ > 0))
                capacity.append(limit)
            count, engines = count + len(source), engines + 2 * ranks
        self.capacity = np.concatenate(capacity)
        flows, links, shares = np.concatenate(flow), np.concatenate(link).astype(np.int64), np.concatenate(share)
        # links that never limit only cost time
        kept = np.flatnonzero(np.isfinite(self.capacity[links]))
        order = kept[np.argsort(flows[kept], kind="stable")]
        self.start = np.searchsorted(flows[order], np.arange(count + 1))
        self.link, self.share = links[order], shares[order]
        self.volume = np.concatenate(volume)

    def link_bytes(self, links: int) -> Array:
        """Return the bytes that crossed each link of the cluster [links]."""
        weight = np.repeat(self.volume, np.diff(self.start)) * self.share
        return np.bincount(self.link, weight, minlength=len(self.capacity))[:links]


@compiled
def fill(volume: Array, start: Array, link: Array, share: Array, capacity: Array) -> Array:
    """Return when each flow ends under max-min fair sharing, float64 [flows].

    Parameters
    ----------
    volume
        Bytes of each flow, more than zero.
    start, link, share
        Links of flow f are ``link[start[f]:start[f + 1]]``; it puts ``share`` of its rate on each.
    capacity
        Bytes/s of each link; inf where it never limits.
    """
    flows = volume.size
    left = volume.copy()
    ends = np.zeros(flows)
    alive = np.arange(flows)
    rate = np.zeros(flows)
    now = 0.0
    while alive.size > 0:
        _rates(alive, start, link, share, capacity, rate)
        step = np.inf
        for f in alive:
            step = min(step, left[f] / rate[f])
        now += step
        kept = 0
        for f in alive:
            unlimited = np.isinf(rate[f])
            if not unlimited:
                left[f] -= rate[f] * step
            # what would end within rounding of now ends now
            if unlimited or left[f] <= _SAME * rate[f] * now:
                ends[f] = now
            else:
                alive[kept] = f
                kept += 1
        alive = alive[:kept]
    return ends


@compiled
def _rates(alive: Array, start: Array, link: Array, share: Array, capacity: Array, rate: Array) -> None:
    """Raise all rates together; freeze the flows of a link when it is full."""
    links = capacity.size
    room, weight = capacity.copy(), np.zeros(links)
    touched = np.zeros(links, np.int64)
    for f in alive:
        for e in range(start[f], start[f + 1]):
            weight[link[e]] += share[e]
            touched[link[e]] += 1
    used: Array = np.flatnonzero(touched)
    # flows of each link, so that a full link finds its own
    first = np.zeros(links + 1, np.int64)
    for i in range(links):
        first[i + 1] = first[i] + touched[i]
    place, members = first[:-1].copy(), np.empty(first[-1], np.int64)
    for f in alive:
        for e in range(start[f], start[f + 1]):
            members[place[link[e]]] = f
            place[link[e]] += 1
    frozen = np.zeros(start.size - 1, np.bool_)
    waiting = alive.size
    while waiting > 0:
        level, full = np.inf, links
        for i in used:
            if touched[i] > 0 and room[i] / weight[i] < level:
                level, full = room[i] / weight[i], i
        if full == links:
            # nothing limits what is left: it is there at once
            for f in alive:
                if not frozen[f]:
                    rate[f] = np.inf
            return
        for m in range(first[full], first[full + 1]):
            f = members[m]
            if frozen[f]:
                continue
            frozen[f] = True
            waiting -= 1
            rate[f] = level
            for e in range(start[f], start[f + 1]):
                i = link[e]
                touched[i] -= 1
                room[i] = max(room[i] - level * share[e], 0.0)
                weight[i] -= share[e]
        touched[full] = 0
