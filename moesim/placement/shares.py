"""Shares of copies by a linear program: for each source node (``shares``), or the same for all (``batch-lp``)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError

TRAFFIC: Final = 0.25
"""Weight of the share of picks that leave their node, against the fullest rank's load over the mean load."""


def node_shares(
    routes: Array, group_ptr: Array, indptr: Array, rank: Array, node: Array, traffic: float = TRAFFIC
) -> tuple[Array, Array]:
    """Return ``share`` float64 [nodes, holders], adding up to 1 per expert, and ``source`` int64 [ranks].

    The shares minimise (load of the fullest rank) / (mean load) + ``traffic`` x (picks computed on another node than
    that of their token) / (picks), given the counts of the batch per source node and expert. Copies of a token that
    merge are not seen by a linear program.

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
    counts = _counts(routes, np.repeat(source, np.diff(group_ptr)), nodes, experts)
    total = counts.sum()
    # what nobody picks, and what has one copy, leaves nothing to decide
    free = (counts[:, expert_of] > 0) & (copies[expert_of] > 1)
    if not free.any():
        return share, source
    place, holder = np.nonzero(free)
    weight = counts[place, expert_of[holder]] * ranks / total
    fixed = np.zeros(ranks)
    np.add.at(fixed, rank, np.where(copies[expert_of] == 1, counts.sum(axis=0)[expert_of], 0) * ranks / total)
    away = node[rank[holder]] != place
    found = _solve(place * experts + expert_of[holder], rank[holder], weight, fixed, traffic * weight * away / ranks)
    share[place, holder] = np.maximum(found, 0.0)
    sums = np.add.reduceat(share, indptr[:-1], axis=1)
    return share / sums[:, expert_of], source


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
