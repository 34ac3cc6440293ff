"""Small pieces that transports share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from moesim.base.arrays import Array
from moesim.costs.constants import FLOOR_PATH_S, SMS, Constant, family

if TYPE_CHECKING:
    from moesim.cluster import Cluster


def frozen(array: Array) -> Array:
    """Return an array of our own, read-only, so that sealing it needs no copy."""
    array.flags.writeable = False
    return array


def clear_diagonal(traffic: Array) -> Array:
    """Return [L, R, R] bytes without what stays on a rank."""
    out = np.array(traffic)
    ranks = out.shape[1]
    out[:, np.arange(ranks), np.arange(ranks)] = 0.0
    return frozen(out)


def split_rows(traffic: Array, cluster: Cluster) -> Array:
    """Return what every rank sends inside its node and across nodes, [L, R, 2] from [L, R, R]."""
    inside = np.einsum("lsd,sd->ls", traffic, cluster.same_node)
    return np.stack([inside, np.maximum(traffic.sum(axis=2) - inside, 0.0)], axis=2)


def net_floor(floor: Constant) -> float:
    """Return a floor measured end to end without the path latency in it, which the network model adds itself.

    It is the latency of the machines it was measured on, whatever the cluster at hand: a slower wire must not make
    the kernel faster.
    """
    return max(floor.value - FLOOR_PATH_S.value, 0.0)


def sm_share(cluster: Cluster, sms: float) -> float:
    """Return the share of the SMs that kernels of so many SMs hold, on the device with fewest; at most 0.9."""
    fewest = min(SMS.get(family(device), 132) for device in set(cluster.device))
    return min(sms / fewest, 0.9)


def cited(transport: str, used: Mapping[str, Constant]) -> dict[str, str]:
    """Return the sources of a transport's constants."""
    return {f"transport {transport}: {name}": str(constant) for name, constant in used.items()}
