"""DeepEP normal: one copy per destination node over the rail-aligned NIC, forwarded over NVLink."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.base.arrays import Array
from moesim.costs import constants as k
from moesim.costs.ports import ports
from moesim.costs.transports.parts import cited, clear_diagonal, net_floor, split_rows
from moesim.costs.types import Direction, FlowLike, Transfer
from moesim.spec import ModelSpec

if TYPE_CHECKING:
    from moesim.cluster import Cluster


def hierarchical(flow: FlowLike, cluster: Cluster, spec: ModelSpec, direction: Direction) -> Transfer:
    """Send one copy per destination node, then forward inside the node.

    Dispatch: leg 1 home -> landing rank (same rail) over the NIC, leg 2 landing rank -> expert rank over NVLink,
    where own-node traffic starts at once. Combine is the reverse: expert ranks send partial sums to the landing
    rank, which adds them up and sends one result per (token, node) home.

    Beside the links stands the copy engine: in one node all SMs of the kernel move the bytes, across nodes one SM
    of every channel's two forwards (the other drives RDMA), so half as many. Own copies pass through it as well.
    """
    nodes = np.asarray(flow.node_copies, np.float64)
    forward = np.asarray(flow.forward, np.float64)
    layers, ranks = forward.shape[:2]
    away = np.zeros((layers, ranks, ranks))
    away[:, np.arange(ranks)[:, None], cluster.landing] = nodes
    if direction == "dispatch":
        size = spec.dispatch_token_bytes + k.NORMAL_META_BYTES.value + spec.top_k * k.NORMAL_PICK_BYTES.value
        rate, floor = k.SM_DISPATCH_BANDWIDTH, k.NORMAL_DISPATCH_FLOOR_S
        senders = np.asarray(flow.rank_copies) > 0
    else:
        size = spec.combine_token_bytes + k.NORMAL_META_BYTES.value + spec.top_k * k.WEIGHT_BYTES.value
        rate, floor = k.SM_COMBINE_BANDWIDTH, k.NORMAL_COMBINE_FLOOR_S
        senders = np.asarray(flow.rank_copies).transpose(0, 2, 1) > 0
        away, forward = away.transpose(0, 2, 1), forward.transpose(0, 2, 1)
    sms = k.NORMAL_SMS.value if cluster.nodes == 1 else k.NORMAL_SMS.value / 2
    engine = _Engine(forward * size, cluster, sms * rate.value)
    nic = clear_diagonal(away * size)
    nvlink = clear_diagonal(engine.moved)
    idle = np.zeros((layers, ranks))
    if direction == "dispatch":
        legs, out_s, in_s = (nic, nvlink), (idle, engine.out_s), (idle, engine.in_s)
        own = split_rows(nic, cluster)
        own[:, :, 0] = np.einsum("lsd,sd->ls", flow.rank_copies, cluster.same_node) * size
        own[:, :, 0] -= np.diagonal(np.asarray(flow.rank_copies), axis1=1, axis2=2) * size
    else:
        legs, out_s, in_s = (nvlink, nic), (engine.out_s, idle), (engine.in_s, idle)
        own = split_rows(nvlink, cluster)
    used = {
        f"{direction} floor": floor,
        "SMs": k.NORMAL_SMS,
        "SM rate": rate,
        "NVLink share": k.NORMAL_NVLINK_SHARE,
        "metadata of a copy": k.NORMAL_META_BYTES,
        "metadata of a pick": k.NORMAL_PICK_BYTES if direction == "dispatch" else k.WEIGHT_BYTES,
    }
    return Transfer(
        legs=legs,
        # chunks of many tokens: posting them costs nothing beside their bytes
        messages=idle,
        floor_s=net_floor(floor, ports(cluster).inside_latency_s),
        per_message_s=0.0,
        sources=cited("hierarchical", used),
        senders=senders,
        own_bytes=own,
        out_s=out_s,
        in_s=in_s,
    )


class _Engine:
    """Seconds that copying SMs and NVLink as they drive it need for one leg, both ends."""

    def __init__(self, moved: Array, cluster: Cluster, bandwidth: float) -> None:
        self.moved = moved
        wire = ports(cluster).seconds_per_byte[:, 0] / k.NORMAL_NVLINK_SHARE.value
        kept = np.diagonal(moved, axis1=1, axis2=2)
        out, into = moved.sum(axis=2), moved.sum(axis=1)
        self.out_s = np.maximum(out / bandwidth, (out - kept) * wire)
        self.in_s = np.maximum(into / bandwidth, (into - kept) * wire)
