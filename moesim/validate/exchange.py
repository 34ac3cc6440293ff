"""One dispatch or combine of a measured row, and the null predictor of communication."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.costs import NETWORKS, TRANSPORTS
from moesim.costs.transports.hierarchical import hierarchical
from moesim.costs.types import Direction, Transfer
from moesim.spec import ModelSpec
from moesim.validate.loads import Counts

if TYPE_CHECKING:
    from moesim.cluster import Cluster

NIC_BANDWIDTH = 46e9
"""Bytes/s of a ConnectX-7 NIC in the null predictor."""


def exchange(
    cluster: Cluster, spec: ModelSpec, transport: str, flow: Counts, direction: Direction, sms: float = 0.0
) -> tuple[float, float]:
    """Return the seconds that the model predicts, and those of the null predictor.

    Parameters
    ----------
    sms
        SMs of the ``hierarchical`` kernels where a row prints them, else 0.
    """
    if sms:
        transfer = hierarchical(flow, cluster, spec, direction, sms)
    else:
        transfer = TRANSPORTS.get(transport)(flow, cluster, spec, direction)
    timing = NETWORKS.get("bottleneck")(transfer, cluster)
    return float(timing.makespan_s[0]), null_s(transfer, cluster, float(timing.floor_s[0]))


def null_s(transfer: Transfer, cluster: Cluster, floor_s: float) -> float:
    """Return alpha + bytes / bandwidth: the mean rank's bytes, across nodes at 46 GB/s, else over NVLink."""
    moved = sum(leg[0] for leg in transfer.legs)
    across = float(np.sum(moved * ~cluster.same_node)) / cluster.ranks
    if across:
        return floor_s + across / NIC_BANDWIDTH
    tier = [name == "node" for name in cluster.link_tier]
    return floor_s + float(np.sum(moved)) / cluster.ranks / float(cluster.link_bandwidth[tier].max())
