"""Small pieces that transports share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled
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


def leg_of(counts: Array, size: float, back: bool) -> Array:
    """Return [L, R, R] bytes of counts of that size, transposed on the way back; nothing stays on its rank."""
    return frozen(_scaled(np.ascontiguousarray(counts, np.float64), size, back))


def split_rows(traffic: Array, cluster: Cluster) -> Array:
    """Return what every rank sends inside its node and across nodes, [L, R, 2] from [L, R, R]."""
    return _split(traffic, cluster.node)


def split_columns(traffic: Array, cluster: Cluster) -> Array:
    """Return what every rank gets from inside its node and from other nodes, [L, R, 2] from [L, R, R]."""
    return _split(traffic.transpose(0, 2, 1), cluster.node)


@compiled
def _scaled(counts: Array, size: float, back: bool) -> Array:
    layers, ranks, _ = counts.shape
    out = np.empty((layers, ranks, ranks))
    block = 32  # of the transposed matrix, so that both sides stay in cache
    for layer in range(layers):
        for top in range(0, ranks, block):
            for left in range(0, ranks, block):
                for s in range(top, min(top + block, ranks)):
                    for d in range(left, min(left + block, ranks)):
                        amount = counts[layer, d, s] if back else counts[layer, s, d]
                        out[layer, s, d] = 0.0 if s == d else amount * size
    return out


@compiled
def _split(traffic: Array, node: Array) -> Array:
    layers, ranks, _ = traffic.shape
    out = np.zeros((layers, ranks, 2))
    for layer in range(layers):
        for s in range(ranks):
            near = far = 0.0
            for d in range(ranks):
                if node[s] == node[d]:
                    near += traffic[layer, s, d]
                else:
                    far += traffic[layer, s, d]
            out[layer, s, 0], out[layer, s, 1] = near, far
    return out


@compiled
def between_nodes(traffic: Array, node: Array, out: Array) -> None:
    """Add bytes [L, R, R] to those from node to node ``out`` [N, N], all layers."""
    for layer in range(traffic.shape[0]):
        for s in range(traffic.shape[1]):
            for d in range(traffic.shape[2]):
                out[node[s], node[d]] += traffic[layer, s, d]


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
