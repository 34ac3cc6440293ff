"""Allgather with reduce-scatter, and one-sided transport inside one NVLink domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.base.errors import InputError
from moesim.costs import constants as k
from moesim.costs.ports import ports
from moesim.costs.transports.channels import collective_constants, collective_engine, collective_floor
from moesim.costs.transports.parts import cited, clear_diagonal, net_floor, sm_share, split_rows
from moesim.costs.tuned import tuned
from moesim.costs.types import Direction, FlowLike, Transfer
from moesim.spec import ModelSpec

if TYPE_CHECKING:
    from moesim.cluster import Cluster


def allgather(flow: FlowLike, cluster: Cluster, spec: ModelSpec, direction: Direction) -> Transfer:
    """Give every rank all tokens (dispatch), add partial results up and scatter them (combine).

    Volume does not depend on routing: a rank receives what the other R - 1 hold, (R - 1)/R of the whole. Across
    nodes along the rails first, then inside the node, so every NIC carries its own rail and NVLink the rest.
    """
    layers, ranks = flow.rank_copies.shape[:2]
    tokens = np.asarray(flow.tokens, np.float64)
    every = np.arange(ranks)
    rail = np.zeros((ranks, ranks))
    rail[every[:, None], cluster.landing] = tokens[:, None]
    # what a rank holds after the rail leg: its own tokens and what landed on it
    inner = np.where(cluster.same_node, rail.sum(axis=0)[:, None], 0.0)
    if direction == "dispatch":
        size = spec.dispatch_token_bytes + spec.top_k * k.INDEX_BYTES.value
        order = (rail, inner)
    else:
        size = spec.combine_token_bytes
        order = (inner.T, rail.T)
    legs = tuple(clear_diagonal(np.broadcast_to(leg * size, (layers, ranks, ranks)).copy()) for leg in order)
    apart = ~np.eye(ranks, dtype=bool) & (tokens > 0)[:, None]
    apart = apart if direction == "dispatch" else apart.T
    own = split_rows(legs[0], cluster)
    if direction == "dispatch":
        own[:, :, 0] = tokens * size * (cluster.same_node.sum(axis=1) - 1)
    engine = collective_engine(legs, cluster, protocols=False)
    # a ring inside the node: the floor of two ranks holds one of its hops
    hops = max(int(np.bincount(cluster.node).max()) - 2, 0) * ports(cluster).inside_latency_s
    return Transfer(
        legs=legs,
        messages=np.full((layers, ranks), float(ranks - 1)),
        floor_s=net_floor(collective_floor(cluster, 2)) + hops,
        per_message_s=0.0,
        sources=cited("allgather", {**collective_constants(cluster), "pick": k.INDEX_BYTES}),
        senders=np.broadcast_to(apart, (layers, ranks, ranks)),
        own_bytes=own,
        out_s=engine.out_s,
        in_s=engine.in_s,
        drain_s=engine.drain_s,
        sm_share=sm_share(cluster, k.COLLECTIVE_CHANNELS.value),
    )


def nvlink(flow: FlowLike, cluster: Cluster, spec: ModelSpec, direction: Direction) -> Transfer:
    """Write one copy per destination rank straight into its memory: one-sided, inside one NVLink domain.

    As TensorRT-LLM does it on NVL72: dispatch puts, combine gets the partial results, flags of all ranks end it.

    Raises
    ------
    InputError
        If the ranks span several NVLink domains, or there is no switch between them.
    """
    if cluster.nodes > 1:
        raise InputError(
            f"transport nvlink: the ranks of {cluster.name} span several NVLink domains and one-sided writes "
            "reach only one; choose transport hierarchical or direct, or the ranks of one domain"
        )
    if ports(cluster).mesh:
        raise InputError(
            f"transport nvlink: the GPUs of {cluster.name} have a link each to each other and no switch, where nobody "
            "measured one-sided writes; choose transport direct or hierarchical"
        )
    copies = np.asarray(flow.rank_copies, np.float64)
    floor = tuned(cluster, "one_sided_floor", k.NVLINK_DISPATCH_FLOOR_S)
    read = tuned(cluster, "one_sided_read", k.ONE_SIDED_READ_S)
    if direction == "dispatch":
        size = spec.dispatch_token_bytes + spec.top_k * k.INDEX_BYTES.value
        leg, reads_s = clear_diagonal(copies * size), 0.0
    else:
        size = spec.combine_token_bytes
        leg = clear_diagonal(copies.transpose(0, 2, 1) * size)
        # no token has results on more ranks than it has picks
        reads_s = read.value * min(spec.top_k, cluster.ranks)
    net = net_floor(floor) + reads_s
    net = max(net + k.ONE_SIDED_DOUBLING_S.value * np.log2(cluster.ranks / 8), 0.0)
    hidden = k.NVLINK_DISPATCH_HIDDEN_S.value + k.NVLINK_COMBINE_HIDDEN_S.value * reads_s
    # seconds a byte takes in or out of a rank; more ranks are more and shorter streams
    nominal = cluster.link_nominal[[tier == "node" for tier in cluster.link_tier]]
    crowd = max(cluster.ranks / 8, 1.0) ** k.ONE_SIDED_SPREAD.value
    rate = crowd / (k.ONE_SIDED_SHARE.value * float(nominal.max())) if nominal.size else 0.0
    used = {
        "floor": floor,
        "hidden": k.NVLINK_DISPATCH_HIDDEN_S,
        "pick": k.INDEX_BYTES,
        "share of NVLink": k.ONE_SIDED_SHARE,
        "loss with ranks": k.ONE_SIDED_SPREAD,
        "doubling of ranks": k.ONE_SIDED_DOUBLING_S,
        "SMs": k.ONE_SIDED_SMS,
    }
    if reads_s:
        used |= {"read of a result": read, "reads hidden": k.NVLINK_COMBINE_HIDDEN_S}
    return Transfer(
        legs=(leg,),
        messages=(leg > 0).sum(axis=2),
        floor_s=net,
        per_message_s=0.0,
        sources=cited("nvlink", used),
        senders=leg > 0,
        own_bytes=split_rows(leg, cluster),
        out_s=(leg.sum(axis=2) * rate,),
        in_s=(leg.sum(axis=1) * rate,),
        hidden_s=min(hidden, net),
        sm_share=sm_share(cluster, k.ONE_SIDED_SMS.value),
    )
