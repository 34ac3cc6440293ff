"""What NCCL adds beside the links: floors by device, channels of one SM each, and the pipeline of chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from moesim.base.arrays import Array
from moesim.costs import constants as k
from moesim.costs.ports import ports
from moesim.costs.transports.parts import split_rows
from moesim.costs.tuned import is_tuned, tuned

if TYPE_CHECKING:
    from moesim.cluster import Cluster

_COLLECTIVE: Final = {
    "protocol step": k.COLLECTIVE_STEP_S,
    "bytes of the protocol step": k.COLLECTIVE_STEP_BYTES,
    "peer": k.COLLECTIVE_PEER_S,
    "chunk ramp": k.COLLECTIVE_RAMP,
    "bytes of the chunk ramp": k.COLLECTIVE_RAMP_BYTES,
    "channels": k.COLLECTIVE_CHANNELS,
    "channels to a peer": k.COLLECTIVE_PEER_CHANNELS,
    "channel rate": k.CHANNEL_BANDWIDTH,
}


class Engine(NamedTuple):
    """Limits of the SMs that drive a collective, as :class:`moesim.costs.Transfer` takes them."""

    out_s: tuple[Array, ...]
    in_s: tuple[Array, ...]
    drain_s: Array


def collective_constants(cluster: Cluster) -> dict[str, k.Constant]:
    """Return the constants of collectives, for the sources of a transport."""
    return {"floor": tuned(cluster, "collective_floor", k.COLLECTIVE_FLOOR_S), **_COLLECTIVE}


def collective_floor(cluster: Cluster, ranks: int) -> k.Constant:
    """Return the floor of a collective of that many ranks on the slowest of the cluster's devices.

    Devices that were not measured count as H100.
    """
    if is_tuned(cluster, "collective_floor"):
        measured = tuned(cluster, "collective_floor", k.COLLECTIVE_FLOOR_S)
        return k.Constant(
            max(measured.value + k.COLLECTIVE_PEER_S.value * (ranks - 8), 0.0), measured.tag, measured.source
        )
    known = [k.COLLECTIVE_FLOORS_S.get(k.family(device), k.COLLECTIVE_FLOOR_S.value) for device in set(cluster.device)]
    floor = k.COLLECTIVE_FLOOR_S
    return k.Constant(max(known) + k.COLLECTIVE_PEER_S.value * (ranks - 8), floor.tag, floor.source)


def collective_engine(legs: tuple[Array, ...], cluster: Cluster, protocols: bool) -> Engine:
    """Return what the channels need for legs of bytes [L, R, R].

    A channel is an SM; all channels together, and those of one peer, have a rate. Chunk buffers fill and drain once
    per transfer, and that many more seconds pass before the last byte is there.

    Parameters
    ----------
    protocols
        Whether larger messages also pay for leaving the latency protocol (direct sends; rings do not).
    """
    rate = k.CHANNEL_BANDWIDTH.value
    every, one = k.COLLECTIVE_CHANNELS.value * rate, k.COLLECTIVE_PEER_CHANNELS.value * rate
    out_s = tuple(np.maximum(leg.sum(axis=2) / every, leg.max(axis=2) / one) for leg in legs)
    in_s = tuple(np.maximum(leg.sum(axis=1) / every, leg.max(axis=1) / one) for leg in legs)
    inside, across = ports(cluster).seconds_per_byte.T
    drain = np.zeros(legs[0].shape[:2])
    for leg, out, into in zip(legs, out_s, in_s, strict=True):
        for part, limit in ((leg, out), (leg.transpose(0, 2, 1), into)):
            near, far = np.moveaxis(split_rows(part, cluster), 2, 0)
            moved = near + far
            seconds = np.maximum.reduce([limit, near * inside, far * across])
            first = np.minimum(1.0, k.COLLECTIVE_RAMP_BYTES.value / np.maximum(moved, 1.0))
            late = k.COLLECTIVE_RAMP.value * seconds * first
            if protocols:
                late = late + k.COLLECTIVE_STEP_S.value * np.minimum(moved / k.COLLECTIVE_STEP_BYTES.value, 1.0)
            drain = np.maximum(drain, late)
    return Engine(out_s, in_s, drain)
