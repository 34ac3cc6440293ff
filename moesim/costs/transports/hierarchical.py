"""DeepEP normal: one copy per destination node over the rail-aligned NIC, forwarded over NVLink."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled
from moesim.costs import constants as k
from moesim.costs.ports import ports
from moesim.costs.transports.parts import cited, frozen, net_floor, sm_share
from moesim.costs.tuned import is_tuned, tuned
from moesim.costs.types import Direction, FlowLike, Transfer
from moesim.spec import ModelSpec

if TYPE_CHECKING:
    from moesim.cluster import Cluster


def hierarchical(
    flow: FlowLike, cluster: Cluster, spec: ModelSpec, direction: Direction, sms: float = k.NORMAL_SMS.value
) -> Transfer:
    """Send one copy per destination node, then forward inside the node.

    Dispatch: leg 1 home -> landing rank (same rail) over the NIC, leg 2 landing rank -> expert rank over NVLink,
    where own-node traffic starts at once. Combine is the reverse: expert ranks send partial sums to the landing
    rank, which adds them up and sends one result per (token, node) home.

    Beside the links stands the copy engine: in one node all SMs of the kernel move the bytes, across nodes one SM
    of every channel's two forwards (the other drives RDMA), so half as many. Own copies pass through it as well.

    Parameters
    ----------
    sms
        SMs of the kernel.
    """
    nodes = np.ascontiguousarray(flow.node_copies, np.float64)
    forward = np.ascontiguousarray(flow.forward, np.float64)
    copies = np.asarray(flow.rank_copies, np.float64)
    layers, ranks = forward.shape[:2]
    if direction == "dispatch":
        size = spec.dispatch_token_bytes + k.NORMAL_META_BYTES.value + spec.top_k * k.NORMAL_PICK_BYTES.value
        row_s = 0.0
    else:
        size = spec.combine_token_bytes + k.NORMAL_META_BYTES.value + spec.top_k * k.WEIGHT_BYTES.value
        row_s = k.NORMAL_COMBINE_ROW_S.value * spec.hidden / 7168
    rate = tuned(cluster, "hierarchical_copy_bandwidth", k.SM_COPY_BANDWIDTH)
    copy_s = k.SM_COPY_S.value + size / rate.value
    copying = sms if cluster.nodes == 1 else sms / 2
    nic, nvlink, kept = _legs(nodes, forward, cluster.landing, size, direction == "combine")
    nic, nvlink = frozen(nic), frozen(nvlink)
    # copying SMs, and NVLink as they drive it, at both ends of the forwarding leg
    wire = ports(cluster).seconds_per_byte[:, 0] / k.NORMAL_NVLINK_SHARE.value
    out_s, in_s = (
        np.maximum((moved + kept) / size * copy_s / copying, moved * wire)
        for moved in (nvlink.sum(axis=2), nvlink.sum(axis=1))
    )
    idle = np.zeros((layers, ranks))
    own = np.zeros((layers, ranks, 2))
    if direction == "dispatch":
        inside = np.einsum("lsd,sd->ls", copies, cluster.same_node) - np.diagonal(copies, axis1=1, axis2=2)
        own[:, :, 0], own[:, :, 1] = inside * size, nic.sum(axis=2)
        legs, engines = (nic, nvlink), ((idle, out_s), (idle, in_s))
    else:
        # results leave the node over all its rails, by the landing ranks of their homes
        outside = np.einsum("lsd,sd->ld", copies, ~cluster.same_node) / cluster.same_node.sum(axis=1)
        own[:, :, 0], own[:, :, 1] = nvlink.sum(axis=2), outside * size
        legs, engines = (nvlink, nic), ((out_s, idle), (in_s, idle))
    senders = np.ascontiguousarray((copies if direction == "dispatch" else copies.transpose(0, 2, 1)) > 0)
    launch = tuned(cluster, "hierarchical_floor", k.NORMAL_DISPATCH_FLOOR_S)
    used = {
        "floor": launch,
        "floors of Blackwell": k.BLACKWELL_FLOORS,
        "SMs": k.NORMAL_SMS,
        "SM rate": rate,
        "copy on an SM": k.SM_COPY_S,
        "NVLink share": k.NORMAL_NVLINK_SHARE,
        "metadata of a copy": k.NORMAL_META_BYTES,
        "metadata of a pick": k.NORMAL_PICK_BYTES if direction == "dispatch" else k.WEIGHT_BYTES,
    }
    if row_s:
        used["first row of combine"] = k.NORMAL_COMBINE_ROW_S
    factor = 1.0 if is_tuned(cluster, "hierarchical_floor") else k.floor_factor(cluster.device)
    return Transfer(
        legs=legs,
        # chunks of many tokens: posting them costs nothing beside their bytes
        messages=idle,
        floor_s=net_floor(launch) * factor + row_s,
        per_message_s=0.0,
        sources=cited("hierarchical", used),
        senders=senders,
        own_bytes=own,
        out_s=engines[0],
        in_s=engines[1],
        sm_share=sm_share(cluster, sms),
    )


@compiled
def _legs(nodes: Array, forward: Array, landing: Array, size: float, back: bool) -> tuple[Array, Array, Array]:
    """Return the bytes of the NIC leg and of the NVLink leg [L, R, R], and what stays on its rank [L, R]."""
    layers, ranks, count = nodes.shape
    nic, nvlink = np.zeros((layers, ranks, ranks)), np.zeros((layers, ranks, ranks))
    kept = np.empty((layers, ranks))
    for layer in range(layers):
        for s in range(ranks):
            for n in range(count):
                at = landing[s, n]
                if at != s:
                    if back:
                        nic[layer, at, s] = nodes[layer, s, n] * size
                    else:
                        nic[layer, s, at] = nodes[layer, s, n] * size
            for d in range(ranks):
                if forward[layer, s, d] > 0.0 and d != s:
                    if back:
                        nvlink[layer, d, s] = forward[layer, s, d] * size
                    else:
                        nvlink[layer, s, d] = forward[layer, s, d] * size
            kept[layer, s] = forward[layer, s, s] * size
    return nic, nvlink, kept
