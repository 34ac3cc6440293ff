"""What every network model adds to its flow times: pipelined legs, copy engines, floors, the sender alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled
from moesim.costs.ports import ports
from moesim.costs.transports.parts import frozen
from moesim.costs.types import Timing, Transfer

if TYPE_CHECKING:
    from moesim.cluster import Cluster


@compiled
def land(leg: Array, finish: Array, out_s: Array, in_s: Array, latency: Array, ready: Array, farthest: Array) -> Array:
    """Return when a leg has arrived at every rank, [l, R], latencies left out.

    A flow ends when its bytes are through (``finish`` [l, R, R]), both copy engines are (``out_s``, ``in_s`` [l, R]),
    and no earlier than what its source forwards has arrived there (``ready`` [l, R], from the leg before). The
    largest latency [R, R] between two ranks that talk is added to ``farthest`` [l].
    """
    layers, ranks, _ = leg.shape
    arrived = np.empty((layers, ranks))
    for layer in range(layers):
        far = 0.0
        for d in range(ranks):
            arrived[layer, d] = max(ready[layer, d], out_s[layer, d], in_s[layer, d])
        for s in range(ranks):
            start = max(ready[layer, s], out_s[layer, s])
            for d in range(ranks):
                if leg[layer, s, d] > 0.0:
                    arrived[layer, d] = max(arrived[layer, d], start, finish[layer, s, d])
                    far = max(far, latency[s, d])
        farthest[layer] += far
    return arrived


def timing(transfer: Transfer, cluster: Cluster, arrive: Array, farthest: Array, link_bytes: Array) -> Timing:
    """Put together a Timing.

    Every rank waits for the last word of the farthest sender: floor, posting of messages and path latency are those
    of the worst pair that talks, and the receive pass that of the fullest rank. So the link-load bound stays a bound.

    Parameters
    ----------
    arrive
        When the last leg has arrived [L, R], from :func:`land`.
    farthest
        Latencies of the legs [L].
    """
    overhead = transfer.floor_s + transfer.per_message_s * transfer.messages.max(axis=1) + farthest
    # bytes move while the floor still runs: only what takes longer than the hidden part comes on top
    hidden = transfer.hidden_s
    drain = np.asarray(transfer.drain_s).max(axis=1)
    alone = (transfer.own_bytes * ports(cluster).seconds_per_byte).max(axis=2)
    link_time = link_bytes / cluster.link_bandwidth
    engines = np.maximum.reduce([*transfer.out_s, *transfer.in_s])
    busiest, slowest = link_time.argmax(axis=1), engines.argmax(axis=1)
    by_link = link_time.max(axis=1) >= engines.max(axis=1)
    arrive = np.maximum(arrive - hidden, 0.0) + (overhead + drain)[:, None]
    taken = np.full(len(drain), transfer.sm_share)
    if transfer.background:
        # beside bytes that move by themselves kernels run for the floor and the receive pass
        whole = arrive.max(axis=1)
        taken *= np.divide(transfer.floor_s + drain, whole, out=np.ones_like(whole), where=whole > 0)
    return Timing(
        arrive_s=frozen(arrive),
        own_s=frozen(np.maximum(alone - hidden, 0.0) + overhead[:, None]),
        link_bytes=frozen(link_bytes),
        link_time_s=frozen(link_time),
        binding=np.where(by_link, busiest, cluster.links + slowest),
        floor_s=overhead,
        drain_s=drain,
        senders=transfer.senders,
        everyone=transfer.everyone,
        taken=taken,
    )
