"""Judges of what computes: solvers, network models, transports, dispatch policies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from moesim.base.errors import InputError, MoesimError
from moesim.costs import TRANSPORTS
from moesim.placement import EMPTY, Placement, dispatch
from moesim.placement.policies import Policy
from moesim.solve.problem import complete_options
from moesim.testing.laws import Verdict, at_least, law, near
from moesim.testing.worlds import flows, problems, without_tokens, worlds


def check_solver(
    solver: Any, *, options: dict[str, Any] | None = None, deadline_s: float = 60.0, repeatable: bool = True
) -> None:
    """Judge a solver: ``solver(problem) -> int [layers, ranks, slots]``.

    On problems without room to spare, with redundant slots, with empty slots and with nodes: every expert is placed in
    every layer, none twice on a rank, shapes and ids are right, the same seed gives the same answer, and nothing that
    was given is changed. A solver may refuse a problem with a MoesimError, but not all of them.

    Raises
    ------
    Verdict
        If a law is broken.
    """
    solved = 0
    for case, problem in problems(deadline_s):
        problem = replace(problem, options=complete_options(solver, "solver", options or {}))
        before = problem.loads.copy()
        try:
            experts = np.asarray(solver(replace(problem, notes=[])))
        except MoesimError:
            continue
        solved += 1
        shape = (problem.layers, problem.ranks, problem.slots_per_rank)
        law(experts.dtype.kind in "iu", f"{case}: expected whole numbers, got {experts.dtype}")
        law(experts.shape == shape, f"{case}: expected [layers, ranks, slots] {shape}, got {experts.shape}")
        try:
            Placement(experts, problem.experts)
        except InputError as error:
            raise Verdict(f"{case}: {error}") from None
        if repeatable:
            again = np.asarray(solver(replace(problem, notes=[])))
            law(np.array_equal(experts, again), f"{case}: the same problem and seed gave another placement")
        law(np.array_equal(before, problem.loads), f"{case}: the solver changed the loads it was given")
    law(solved > 0, "the solver refused every problem")


def check_network(network: Any) -> None:
    """Judge a network model: ``network(transfer, cluster) -> Timing``.

    Seconds are finite and not negative; no rank is done before the floor; links carry exactly the bytes of their
    paths; nothing is faster than the busiest link alone; more bandwidth everywhere is never slower, more bytes never
    faster; the same transfer gives the same timing.

    Raises
    ------
    Verdict
        If a law is broken.
    """
    for name in ("direct", "hierarchical"):
        for case, cluster, spec, flow in flows():
            case = f"{case}, transport {name}"
            transfer = TRANSPORTS.get(name)(flow, cluster, spec, "dispatch")
            timing = network(transfer, cluster)
            arrive, own = timing.arrive_s, timing.own_s
            for what, array in (("arrive_s", arrive), ("own_s", own), ("link_time_s", timing.link_time_s)):
                law(bool(np.isfinite(array).all() and (array >= 0).all()), f"{case}: {what} must be finite, >= 0")
            expected = sum(cluster.paths.link_bytes(leg) for leg in transfer.legs)
            near(timing.link_bytes, expected, f"{case}: links carry other bytes than the paths of the transfer")
            near(timing.link_time_s, expected / cluster.link_bandwidth, f"{case}: link_time_s is not bytes/bandwidth")
            loaded = timing.link_bytes.max(axis=1) > 0
            slowest = timing.link_time_s.max(axis=1)
            at_least(timing.makespan_s[loaded], slowest[loaded], f"{case}: faster than its busiest link alone")
            at_least(timing.makespan_s, timing.floor_s, f"{case}: faster than an empty message")
            wider = replace(cluster, link_bandwidth=cluster.link_bandwidth * 2)
            at_least(timing.makespan_s, network(transfer, wider).makespan_s, f"{case}: twice the bandwidth is slower")
            more = replace(
                transfer,
                legs=tuple(leg * 2 for leg in transfer.legs),
                own_bytes=transfer.own_bytes * 2,
                out_s=tuple(part * 2 for part in transfer.out_s),
                in_s=tuple(part * 2 for part in transfer.in_s),
            )
            at_least(network(more, cluster).makespan_s, timing.makespan_s, f"{case}: twice the bytes are faster")
            near(network(transfer, cluster).arrive_s, arrive, f"{case}: the same transfer gave another timing", 0.0)


def check_transport(transport: Any) -> None:
    """Judge a transport: ``transport(flow, cluster, spec, direction) -> Transfer``.

    Every token reaches every node and every rank it must go to; combine goes the way of dispatch backwards; no
    traffic where there are no tokens. A transport may refuse a cluster with a MoesimError, but not all of them.

    Raises
    ------
    Verdict
        If a law is broken.
    """
    carried = 0
    for case, cluster, spec, flow in flows():
        try:
            there = transport(flow, cluster, spec, "dispatch")
            back = transport(flow, cluster, spec, "combine")
        except MoesimError:
            continue
        carried += 1
        for way, transfer in (("dispatch", there), ("combine", back)):
            for leg in transfer.legs:
                law(bool(np.isfinite(leg).all() and (leg >= 0).all()), f"{case}: {way}: bytes must be finite, >= 0")
        away = flow.rank_copies * ~np.eye(cluster.ranks, dtype=bool) > 0
        law(bool((there.senders | ~away).all()), f"{case}: a rank with tokens for another is not among its senders")
        backwards = there.senders.transpose(0, 2, 1)
        law(bool((back.senders | ~(away.transpose(0, 2, 1))).all()), f"{case}: results do not go home")
        law(bool((back.senders <= backwards).all()), f"{case}: combine uses pairs that dispatch does not")
        # the least that any transport must move: a token once into every node that needs it
        other = cluster.node[:, None] != np.arange(cluster.nodes)
        least = (flow.node_copies * other).sum(axis=1) * spec.dispatch_token_bytes
        cross = ~cluster.same_node
        moved = sum((leg * cross).sum(axis=1) for leg in there.legs)
        into = np.stack([moved[:, cluster.node == node].sum(axis=1) for node in range(cluster.nodes)], axis=1)
        at_least(into, least, f"{case}: fewer bytes enter a node than its tokens have")
        quiet = transport(without_tokens(flow), cluster, spec, "dispatch")
        law(not any(leg.any() for leg in quiet.legs), f"{case}: no tokens, but bytes on the network")
    law(carried > 0, "the transport refused every cluster")


def check_policy(policy: str | Policy) -> None:
    """Judge a dispatch policy, by name or as one of the wrappers of ``moesim.placement.policies``.

    Tokens in are tokens out; only slots that hold the expert serve it; a token is counted once per rank and once per
    node; forwarding inside a node delivers what enters it; the same seed gives the same flow.

    Raises
    ------
    Verdict
        If a law is broken.
    """
    for case, cluster, batches, placement in worlds():
        routes, home = batches.routes(0), batches.homes(0)
        given = (routes, home, placement, cluster.node, cluster.landing)
        try:
            flow = dispatch(*given, policy=policy, seed=3)
        except InputError as error:
            raise Verdict(f"{case}: {error}") from None
        spec = batches.trace.spec
        picks = np.stack([np.bincount(routes[:, i].ravel(), minlength=spec.experts) for i in range(spec.layers)])
        served = np.zeros((spec.layers, spec.experts))
        layer, rank, slot = np.nonzero(placement.experts != EMPTY)
        np.add.at(served, (layer, placement.experts[layer, rank, slot]), flow.slot_tokens[layer, rank, slot])
        near(served, picks, f"{case}: experts serve other tokens than picked them")
        law(not flow.slot_tokens[placement.experts == EMPTY].any(), f"{case}: an empty slot serves tokens")
        pairs, copies = flow.pairs, flow.rank_copies
        near(pairs.sum(axis=1), flow.slot_tokens.sum(axis=2), f"{case}: pairs and slots disagree on a rank's work")
        sent = np.bincount(home, minlength=cluster.ranks) * spec.top_k
        near(
            pairs.sum(axis=2),
            np.broadcast_to(sent, pairs.shape[:2]),
            f"{case}: a rank sends more or fewer than it has",
        )
        at_least(pairs, copies, f"{case}: more copies than token-expert pairs")
        onto = np.stack([copies[:, :, cluster.node == n].sum(axis=2) for n in range(cluster.nodes)], axis=2)
        at_least(onto, flow.node_copies, f"{case}: more copies for a node than for its ranks")
        at_least(np.broadcast_to(flow.tokens[:, None], flow.node_copies.shape[1:]), flow.node_copies.max(axis=0),
               f"{case}: a token is counted twice for one node")  # fmt: skip
        near(flow.forward.sum(axis=1), copies.sum(axis=1), f"{case}: forwarding loses or adds tokens")
        again = dispatch(*given, policy=policy, seed=3)
        near(again.slot_tokens, flow.slot_tokens, f"{case}: the same seed gave another flow", 0.0)
