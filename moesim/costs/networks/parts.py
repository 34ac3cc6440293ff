"""What every network model adds to its flow times: pipelined legs, copy engines, floors, the sender alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.base.arrays import Array
from moesim.cluster.kernels import compiled
from moesim.costs.ports import ports
from moesim.costs.types import Timing, Transfer

if TYPE_CHECKING:
    from moesim.cluster import Cluster


def overhead_s(transfer: Transfer, cluster: Cluster) -> Array:
    """Return what comes on top of the bytes in each layer [L]: floor, posting of messages, path latencies.

    Every rank waits for the last word of the farthest sender, so latency and posting are those of the worst pair
    that talks; with legs, one latency each.
    """
    latency = ports(cluster).latency_s
    total = transfer.floor_s + transfer.per_message_s * transfer.messages.max(axis=1)
    for leg in transfer.legs:
        total = total + _worst(leg, latency)
    return np.asarray(total)


@compiled
def _worst(leg: Array, latency: Array) -> Array:
    layers, ranks, _ = leg.shape
    out = np.zeros(layers)
    for layer in range(layers):
        for s in range(ranks):
            for d in range(ranks):
                if leg[layer, s, d] > 0.0 and latency[s, d] > out[layer]:
                    out[layer] = latency[s, d]
    return out


@compiled
def land(leg: Array, finish: Array, out_s: Array, in_s: Array, ready: Array) -> Array:
    """Return when a leg has arrived at every rank, [l, R].

    A flow ends when its bytes are through (``finish`` [l, R, R]), both copy engines are (``out_s``, ``in_s`` [l, R]),
    and no earlier than what its source forwards has arrived there (``ready`` [l, R], from the leg before).
    """
    layers, ranks, _ = leg.shape
    arrived = np.empty((layers, ranks))
    for layer in range(layers):
        for d in range(ranks):
            arrived[layer, d] = max(ready[layer, d], out_s[layer, d], in_s[layer, d])
        for s in range(ranks):
            start = max(ready[layer, s], out_s[layer, s])
            for d in range(ranks):
                if leg[layer, s, d] > 0.0:
                    end = max(start, finish[layer, s, d])
                    if end > arrived[layer, d]:
                        arrived[layer, d] = end
    return arrived


def own_s(transfer: Transfer, cluster: Cluster, overhead: Array) -> Array:
    """Return the time a rank's own bytes need when nobody else sends, [L, R]."""
    alone = (transfer.own_bytes * ports(cluster).seconds_per_byte).max(axis=2)
    return np.asarray(alone + overhead[:, None])


def timing(transfer: Transfer, cluster: Cluster, arrive: Array, link_bytes: Array) -> Timing:
    """Put together a Timing from the arrival of the last leg, [L, R] without overheads."""
    overhead = overhead_s(transfer, cluster)
    # of the fullest rank for all: everybody waits for it anyway, and the link-load bound stays a bound
    drain = np.asarray(transfer.drain_s).max(axis=1)
    link_time = link_bytes / cluster.link_bandwidth
    limit = [link_time, *(np.maximum(o, i) for o, i in zip(transfer.out_s, transfer.in_s, strict=True))]
    engines = np.maximum.reduce(limit[1:])
    binding = np.concatenate([link_time, engines], axis=1).argmax(axis=1)
    return Timing(
        arrive_s=arrive + (overhead + drain)[:, None],
        own_s=own_s(transfer, cluster, overhead),
        link_bytes=link_bytes,
        link_time_s=link_time,
        binding=binding,
        floor_s=overhead,
        drain_s=drain,
        senders=transfer.senders,
        everyone=transfer.everyone,
    )
