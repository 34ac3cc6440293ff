"""Point-to-point transports: one message per (token, expert) pair, or one copy per destination rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.base.arrays import Array
from moesim.costs import constants as k
from moesim.costs.transports.channels import collective_constants, collective_engine, collective_floor
from moesim.costs.transports.parts import cited, leg_of, net_floor, sm_share, split_columns, split_rows
from moesim.costs.tuned import is_tuned, tuned
from moesim.costs.types import Direction, FlowLike, Transfer
from moesim.spec import ModelSpec

if TYPE_CHECKING:
    from moesim.cluster import Cluster


def direct(flow: FlowLike, cluster: Cluster, spec: ModelSpec, direction: Direction) -> Transfer:
    """Send one message per (token, expert) pair: DeepEP low latency since 2025-06.

    NVLink inside the node, RDMA from the own NIC across nodes; every rank waits for a count or flag of every
    expert. Dispatch carries hidden x dispatch bytes (scales included) and a 16-byte header; combine carries the
    result of every pair home, where the K results of a token are read and added up. The receive pass over HBM
    starts when everything has arrived, so it comes on top.
    """
    pairs = np.asarray(flow.pairs, np.float64)
    if direction == "dispatch":
        size = spec.dispatch_token_bytes + k.LL_HEADER_BYTES.value
        leg, inbound = leg_of(pairs, size, back=False), pairs.sum(axis=1)
        moved, hidden = 2 * inbound * size, k.LL_DISPATCH_HIDDEN_S
        floor = tuned(cluster, "direct_dispatch_floor", k.LL_DISPATCH_FLOOR_S)
    else:
        size = spec.combine_token_bytes
        leg, inbound = leg_of(pairs, size, back=True), pairs.sum(axis=2)
        moved, hidden = (inbound + flow.tokens) * size, k.LL_COMBINE_HIDDEN_S
        floor = tuned(cluster, "direct_combine_floor", k.LL_COMBINE_FLOOR_S)
    # the receive pass; its launch is in the floor
    copy = np.array(k.shares(cluster.device, k.COPY_SHARE, k.COPY_SHARE_BLACKWELL))
    drain = moved / (copy * cluster.hbm_bandwidth)
    used = {
        "HBM share of copies": k.COPY_SHARE,
        "HBM share of copies, Blackwell": k.COPY_SHARE_BLACKWELL,
        "header": k.LL_HEADER_BYTES,
        "NIC message": k.NIC_MESSAGE_S,
        "expert": k.LL_EXPERT_S,
        "floors of Blackwell": k.BLACKWELL_FLOORS,
        "SMs while its kernels run": k.LL_SM_SHARE,
    }
    own = split_rows(leg, cluster)
    rate = tuned(cluster, "direct_combine_bandwidth", k.LL_COMBINE_BANDWIDTH)
    engine = np.array([rate is not k.LL_COMBINE_BANDWIDTH or k.is_hopper(device) for device in cluster.device])
    engine = engine / rate.value
    if direction == "combine":
        out_s, in_s = own[:, :, 0] * engine, split_columns(leg, cluster)[:, :, 0] * engine
        used["NVLink rate of combine"] = rate
    else:
        # a kernel has an SM for each expert, or for as many as make the groups of experts even
        sms = np.ceil(spec.experts / np.ceil(spec.experts / k.LL_SMS.value))
        out_s = np.broadcast_to(np.asarray(flow.tokens) * k.LL_TOKEN_S.value / sms, pairs.shape[:2])
        in_s = np.zeros(pairs.shape[:2])
        used["token on an SM"] = k.LL_TOKEN_S
    net = net_floor(floor) + spec.experts * k.LL_EXPERT_S.value
    return Transfer(
        legs=(leg,),
        messages=own[:, :, 1] / size,
        floor_s=net * (1.0 if is_tuned(cluster, f"direct_{direction}_floor") else k.floor_factor(cluster.device)),
        hidden_s=min(hidden.value, net),
        per_message_s=k.NIC_MESSAGE_S.value,
        sources=cited("direct", {**used, f"{direction} floor": floor, f"{direction} hidden": hidden}),
        senders=leg > 0,
        own_bytes=own,
        out_s=(out_s,),
        in_s=(in_s,),
        drain_s=drain,
        sm_share=k.LL_SM_SHARE.value,
        background=True,
    )


def rank_dedup(flow: FlowLike, cluster: Cluster, spec: ModelSpec, direction: Direction) -> Transfer:
    """Send a token once to every rank that holds one of its experts, and one partial sum back: all-to-all(v).

    NVLink inside the node, the sender's own NIC across nodes; sizes are exchanged first, so every rank waits for
    every rank. Each copy carries the ids and weights of the token's picks.
    """
    copies = np.asarray(flow.rank_copies, np.float64)
    leg = _rank_leg(copies, spec, direction)
    engine = collective_engine((leg,), cluster, protocols=True)
    return Transfer(
        legs=(leg,),
        messages=(leg > 0).sum(axis=2),
        floor_s=net_floor(collective_floor(cluster, cluster.ranks)),
        per_message_s=k.NIC_MESSAGE_S.value,
        sources=cited("rank-dedup", {**collective_constants(cluster), "pick": k.INDEX_BYTES, "NIC": k.NIC_MESSAGE_S}),
        senders=leg > 0,
        own_bytes=split_rows(leg, cluster),
        out_s=engine.out_s,
        in_s=engine.in_s,
        drain_s=engine.drain_s,
        sm_share=sm_share(cluster, k.COLLECTIVE_CHANNELS.value),
    )


def _rank_leg(copies: Array, spec: ModelSpec, direction: Direction) -> Array:
    if direction == "dispatch":
        return leg_of(copies, spec.dispatch_token_bytes + spec.top_k * k.INDEX_BYTES.value, back=False)
    return leg_of(copies, spec.combine_token_bytes, back=True)
