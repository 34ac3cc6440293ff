"""The link-load bound: a flow ends when the slowest link of its path has drained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.costs.networks.parts import land, timing
from moesim.costs.ports import ports
from moesim.costs.types import Timing, Transfer

if TYPE_CHECKING:
    from moesim.cluster import Cluster

_CHUNK_PAIRS = 4_000_000  # rank pairs whose times are held at once: 32 MB


def bottleneck(transfer: Transfer, cluster: Cluster) -> Timing:
    """Time a transfer by the load of its links.

    All legs load the links together, as pipelined transfers do. The makespan is that of fluid fair sharing (see
    ``docs/physics.md``); a rank whose flows would end early under fair sharing gets the later, full drain time.
    """
    paths = cluster.paths
    link_bytes = sum((paths.link_bytes(leg) for leg in transfer.legs[1:]), paths.link_bytes(transfer.legs[0]))
    link_time = link_bytes / cluster.link_bandwidth
    layers, ranks = transfer.messages.shape
    latency = ports(cluster).latency_s
    arrive, farthest = np.zeros((layers, ranks)), np.zeros(layers)
    step = max(1, _CHUNK_PAIRS // (ranks * ranks))
    for first in range(0, layers, step):
        part = slice(first, first + step)
        drained = paths.slowest_matrix(link_time[part])
        for leg, out_s, in_s in zip(transfer.legs, transfer.out_s, transfer.in_s, strict=True):
            arrive[part] = land(leg[part], drained, out_s[part], in_s[part], latency, arrive[part], farthest[part])
    return timing(transfer, cluster, arrive, farthest, link_bytes)
