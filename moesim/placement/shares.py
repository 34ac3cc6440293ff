"""Shares of copies by a linear program: for each source node (``shares``), or the same for all (``batch-lp``)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled
from moesim.base.errors import InputError
from moesim.placement.token_aware import covered

TRAFFIC: Final = 2.0
"""Weight of copies to other nodes per pick, against the fullest rank's load over the mean load. By the costs it is
more on InfiniBand: in the demo (DeepSeek-V3, H100) a copy per pick takes about five times the balanced experts."""
ROUNDS: Final = 3
"""Linear programs solved in turn, each with the prices that follow from the shares of those before."""
_NOTHING: Final = 1e-9


def node_shares(
    routes: Array, group_ptr: Array, indptr: Array, rank: Array, node: Array, traffic: float = TRAFFIC
) -> tuple[Array, Array]:
    """Return ``share`` float64 [nodes, holders], adding up to 1 per expert, and ``source`` int64 [ranks].

    The shares make small (load of the fullest rank) / (mean load) + ``traffic`` x (copies of tokens to other nodes
    than their own) / (picks), given the tokens of the batch. Copies of a token to one node merge, which is not linear:
    a pick that leaves its node is priced by how seldom its token goes to that node for other picks anyway, at first
    where tokens go to the fewest nodes, then where the shares of the program before send them. The best answer is
    taken.

    Parameters
    ----------
    routes, group_ptr, indptr, rank, node
        As in :class:`moesim.placement.policies.LayerBatch`.

    Raises
    ------
    InputError
        If the linear program has no answer.
    """
    ranks, nodes, experts = len(node), int(node.max()) + 1, len(indptr) - 1
    copies = np.diff(indptr)
    expert_of = np.repeat(np.arange(experts), copies)
    share = np.repeat(np.repeat(1.0 / copies, copies)[None], nodes, axis=0)
    source = node.astype(np.int64)
    home = np.repeat(source, np.diff(group_ptr))
    counts = _counts(routes, home, nodes, experts)
    total = counts.sum()
    # what nobody picks, and what has one copy, leaves nothing to decide
    free = (counts[:, expert_of] > 0) & (copies[expert_of] > 1)
    if not free.any():
        return share, source
    place, holder = np.nonzero(free)
    expert, target = expert_of[holder], node[rank[holder]].astype(np.int64)
    weight = counts[place, expert] * ranks / total
    fixed = np.zeros(ranks)
    np.add.at(fixed, rank, np.where(copies[expert_of] == 1, counts.sum(axis=0)[expert_of], 0) * ranks / total)
    merging = traffic > 0 and nodes > 1
    alone = np.zeros(len(holder))
    if merging:
        chosen = np.empty(routes.shape, np.int64)
        covered(routes, group_ptr, indptr, rank, node, chosen)
        alone = _alone(routes, home, _served(routes, home, chosen, rank, node, experts))[0][place, expert, target]
    best, answer = np.inf, share
    for _ in range(ROUNDS if merging else 1):
        found = _solve(place * experts + expert, rank[holder], weight, fixed, traffic * weight * alone / ranks)
        share = share.copy()
        share[place, holder] = np.maximum(found, 0.0)
        share /= np.add.reduceat(share, indptr[:-1], axis=1)[:, expert_of]
        if not merging:
            return share, source
        load = np.bincount(rank, weights=(counts[:, expert_of] * share).sum(axis=0), minlength=ranks)
        served = np.zeros((nodes, experts, nodes))
        np.add.at(served.transpose(1, 2, 0), (expert_of, node[rank]), share.T)
        price, visits = _alone(routes, home, served)
        worth = (load.max() * ranks + traffic * visits) / total
        if worth < best:
            best, answer = worth, share
        # half of the old prices: with new ones alone the programs answer each other to and fro
        alone = (alone + price[place, expert, target]) / 2
    return answer, source


@compiled
def _served(routes: Array, home: Array, chosen: Array, rank: Array, node: Array, experts: int) -> Array:
    """Return the part of an expert's picks that each node serves, float64 [source nodes, experts, nodes]."""
    nodes = node.max() + 1
    served = np.zeros((nodes, experts, nodes))
    for token in range(len(routes)):
        for pick in range(routes.shape[1]):
            if chosen[token, pick] >= 0:
                served[home[token], routes[token, pick], node[rank[chosen[token, pick]]]] += 1.0
    for source in range(nodes):
        for expert in range(experts):
            served[source, expert] /= max(served[source, expert].sum(), 1.0)
    return served


@compiled
def _alone(routes: Array, home: Array, served: Array) -> tuple[Array, float]:
    """Return how often a pick is alone on a node other than its token's own, and the copies to such nodes, expected.

    Parameters
    ----------
    routes, home
        Picks of tokens [tokens, picks], negative = none, and their nodes int64 [tokens].
    served
        As :func:`_served` returns it.

    Returns
    -------
    Mean over the tokens that pick an expert of the chance that none of their other picks goes to a node, float64
    [source nodes, experts, nodes], 0 for the own node; copies.
    """
    nodes, experts, _ = served.shape
    alone, seen = np.zeros(served.shape), np.zeros((nodes, experts))
    visits = 0.0
    for token in range(len(routes)):
        own = home[token]
        for expert in routes[token]:
            if expert >= 0:
                seen[own, expert] += 1.0
        for target in range(nodes):
            if target == own:
                continue
            # the product of what stays away, without those that all go there: they are counted
            away, all_there = 1.0, 0
            for expert in routes[token]:
                if expert >= 0:
                    stays = 1.0 - served[own, expert, target]
                    if stays > _NOTHING:
                        away *= stays
                    else:
                        all_there += 1
            visits += 1.0 - (away if all_there == 0 else 0.0)
            for expert in routes[token]:
                if expert >= 0:
                    stays = 1.0 - served[own, expert, target]
                    if stays <= _NOTHING:
                        alone[own, expert, target] += away if all_there == 1 else 0.0
                    elif all_there == 0:
                        alone[own, expert, target] += away / stays
    for source in range(nodes):
        for expert in range(experts):
            alone[source, expert] /= max(seen[source, expert], 1.0)
    return alone, visits


def batch_shares(routes: Array, group_ptr: Array, indptr: Array, rank: Array, ranks: int) -> tuple[Array, Array]:
    """Return ``share`` float64 [1, holders], adding up to 1 per expert, and ``source`` int64 [ranks], all zero.

    The shares make the load of the fullest rank as small as it can be, given the counts of the batch per expert, which
    ranks all-reduce before they dispatch (DeepSeek's LPLB; SGLang's ``lp``). Where tokens come from does not matter.

    Raises
    ------
    InputError
        If the linear program has no answer.
    """
    everywhere = np.zeros(ranks, dtype=np.int32)
    return node_shares(routes, group_ptr, indptr, rank, everywhere, traffic=0.0)


def _counts(routes: Array, place: Array, nodes: int, experts: int) -> Array:
    token, pick = np.nonzero(routes >= 0)
    cell = place[token] * experts + routes[token, pick]
    return np.bincount(cell, minlength=nodes * experts).reshape(nodes, experts)


def _solve(group: Array, rank: Array, weight: Array, fixed: Array, price: Array) -> Array:
    """Return the variables that minimise max over ranks (fixed + weight x) + price x, summing to 1 in each group."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, hstack

    count = len(group)
    column = np.arange(count)
    _, row = np.unique(group, return_inverse=True)
    load: Any = csr_array((weight, (rank, column)), shape=(len(fixed), count))
    ones: Any = csr_array((np.ones(count), (row, column)), shape=(int(row.max()) + 1, count))
    answer = linprog(
        np.append(price, 1.0),
        A_ub=hstack([load, csr_array(-np.ones((len(fixed), 1)))], format="csr"),
        b_ub=-fixed,
        A_eq=hstack([ones, csr_array((ones.shape[0], 1))], format="csr"),
        b_eq=np.ones(ones.shape[0]),
        bounds=(0, None),
        method="highs",
    )
    if answer.x is None:
        raise InputError(f"shares: the linear program of a batch has no answer: {answer.message}")
    return np.asarray(answer.x[:-1])
