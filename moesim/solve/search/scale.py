"""Seconds of one count: what a token on a rank, or a copy through a port, costs under the real cost models.

The search counts; the costs know seconds. Two flows that load one kind of port and nothing else, and slots filled
twice as high, tell how many seconds a count is worth at the size of the batches, whatever transport, network model
and cluster are in use: oversubscribed fabrics, copy engines and receive passes included.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.placement import Flow
from moesim.solve.problem import Problem
from moesim.solve.search.state import (
    COUNTERS,
    DIRECT,
    INSIDE_IN,
    INSIDE_OUT,
    NIC_IN,
    NIC_OUT,
    NOTHING,
    PER_NODE,
    PER_RANK,
    TOKENS,
)

_MODES: Final = {
    "direct": DIRECT,
    "rank-dedup": PER_RANK,
    "hierarchical": PER_NODE,
    "nvlink": PER_RANK,
    "allgather": NOTHING,
}


def merging(problem: Problem) -> int:
    """Return how the transport merges the copies of a token."""
    transport = problem.costs.transport
    if transport not in _MODES:
        problem.note(f"transport {transport!r} is not known to the search: it assumes one copy per destination rank")
    return _MODES.get(transport, PER_RANK)


def tokens_per_rank(problem: Problem) -> float:
    """Return the mean tokens of a rank in a step."""
    steps = sum(len(window) for window in problem.batches)
    return sum(len(window.token) for window in problem.batches) / (steps * problem.ranks)


def seconds_per_count(problem: Problem, mode: int) -> NDArray[np.float64]:
    """Return the seconds of one count of a step, float64 [counters, ranks]; dispatch and combine together."""
    scale = np.zeros((COUNTERS, problem.ranks))
    scale[TOKENS] = _token_s(problem)
    if mode == NOTHING:
        return scale
    cluster = problem.cluster
    ranks, load = cluster.ranks, max(tokens_per_rank(problem), 1.0)
    inside = cluster.same_node & ~np.eye(ranks, dtype=bool)
    if inside.any():
        peers = inside.sum(axis=1)
        copies = inside * load
        spent = _network_s(problem, copies, local=copies)
        scale[INSIDE_IN] = scale[INSIDE_OUT] = spent / (load * np.maximum(peers, 1)) * (peers > 0)
    if cluster.nodes > 1:
        copies = np.zeros((ranks, ranks))
        if mode == PER_NODE:
            copies[np.arange(ranks)[:, None], cluster.landing] = load
            copies[np.arange(ranks), np.arange(ranks)] = 0.0
        else:
            remote = ~cluster.same_node
            copies = remote * (load / remote.sum(axis=1, keepdims=True))
        counted = (copies.sum(axis=0) + copies.sum(axis=1)) / 2
        spent = _network_s(problem, copies, local=np.diag(copies.sum(axis=0)))
        scale[NIC_IN] = scale[NIC_OUT] = spent / np.maximum(counted, 1e-300) * (counted > 0)
    return scale


def _token_s(problem: Problem) -> Array:
    """Return the marginal seconds of a token-expert pair on each rank."""
    pairs = tokens_per_rank(problem) * problem.spec.top_k
    used = min(problem.slots_per_rank, problem.experts)
    slots = np.full((problem.ranks, used), pairs / used)
    # over a doubling, so that whole tiles and waves even out
    try:
        spent = problem.costs.experts_s(2 * slots) - problem.costs.experts_s(slots)
    except InputError:  # a kernel table ends somewhere
        spent = 2 * (problem.costs.experts_s(slots) - problem.costs.experts_s(slots / 2))
    return np.asarray(np.maximum(spent, 0.0) / pairs)


def _network_s(problem: Problem, copies: Array, local: Array) -> Array:
    """Return the seconds of dispatch and combine of each rank beyond an empty exchange, float64 [ranks].

    ``copies`` [ranks, ranks] go from home to expert rank; ``local`` from landing rank to expert rank.
    """
    cluster, costs = problem.cluster, problem.costs
    spent = np.zeros(cluster.ranks)
    for sign, share in ((1, 1.0), (-1, 0.0)):
        flow = _flow(problem, copies * share, local * share)
        for timing in (costs.dispatch(flow), costs.combine(flow)):
            spent += sign * (timing.arrive_s[0] if sign > 0 else timing.floor_s[0])
    return np.maximum(spent, 0.0)


def _flow(problem: Problem, copies: Array, local: Array) -> Flow:
    cluster = problem.cluster
    ranks, node = cluster.ranks, cluster.node
    by_node = np.zeros((ranks, cluster.nodes))
    np.add.at(by_node.T, node, copies.T)
    if local.any() and np.array_equal(local, copies):
        # the same tokens visit all peers: one copy for the own node
        by_node[np.arange(ranks), node] = copies.max(axis=1)
    widest = int(np.bincount(node).max())
    position = np.array([np.count_nonzero(node[:r] == node[r]) for r in range(ranks)])
    forward = np.zeros((ranks, widest))
    source, target = np.nonzero(local)
    forward[source, position[target]] = local[source, target]
    slots = np.zeros((ranks, problem.slots_per_rank))
    slots[:, 0] = copies.sum(axis=0)
    tokens = np.full(ranks, max(round(tokens_per_rank(problem)), 1))
    return Flow(tokens, node, *(part[None] for part in (slots, copies, copies, by_node, forward)))
