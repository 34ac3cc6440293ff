"""How many tokens must leave their node whatever the placement: bounds from token sets.

A node that can hold ``room`` of E experts serves a token alone only if it holds all its picks.

* *One pick a token*: give every token's unit weight to one of its picks; whichever experts the node lacks, the tokens
  whose unit lies on them must leave. So at least the sum of the ``E - room`` smallest expert weights leave. A
  perfectly even split is the dual optimum of the covering problem's linear relaxation.
* *Two picks a token*: give the unit to a pair of picks. A node's experts serve alone at most the units on pairs of
  them; counted from each expert's side, half the sum over ``room`` experts of their ``room - 1`` heaviest pairs. Of
  half the experts a node holds a quarter of the pairs, so that this is the sharper one where rooms are small and
  co-activation is not extreme.

Units are moved to the lighter picks or pairs in a few passes, which evens out the weights and sharpens the bounds; any
split is valid, and the larger bound counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.placement.kernels import compiled

_PASSES = 3


@compiled
def _even_weights(routes: Any, members: Any, experts: int, passes: int) -> Any:
    """Return the weight of each expert when every token's unit lies on one of its picks, as even as passes allow."""
    weight = np.zeros(experts, np.int64)
    chosen = np.full(len(members), -1, np.int64)
    for _ in range(passes):
        for index in range(len(members)):
            row = members[index]
            if chosen[index] >= 0:
                weight[chosen[index]] -= 1
            best = -1
            for pick in range(routes.shape[1]):
                expert = routes[row, pick]
                if expert >= 0 and (best < 0 or weight[expert] < weight[best]):
                    best = expert
            chosen[index] = best
            if best >= 0:
                weight[best] += 1
    return weight


@compiled
def _even_pairs(routes: Any, members: Any, experts: int, passes: int) -> Any:
    """Return weights [experts, experts] when every token's unit lies on one pair of its picks, as even as passes allow.

    Symmetric; tokens of a single expert lie on the diagonal.
    """
    weight = np.zeros((experts, experts), np.int64)
    chosen = np.full((len(members), 2), -1, np.int64)
    picks = routes.shape[1]
    for _ in range(passes):
        for index in range(len(members)):
            row = routes[members[index]]
            first, second = chosen[index]
            if first >= 0:
                weight[first, second] -= 1
            first = second = -1
            for one in range(picks):
                if row[one] < 0:
                    continue
                if first < 0:
                    first = second = row[one]
                for other in range(one):
                    if row[other] < 0 or row[other] == row[one]:
                        continue
                    low, high = min(row[one], row[other]), max(row[one], row[other])
                    if first == second or weight[low, high] < weight[first, second]:
                        first, second = low, high
            chosen[index, 0], chosen[index, 1] = first, second
            if first >= 0:
                weight[first, second] += 1
    for one in range(experts):
        for other in range(one):
            weight[one, other] = weight[other, one]
    return weight


def _served_alone(weight: NDArray[np.int64], room: int) -> float:
    """Return the most units that any ``room`` experts can hold on pairs of them and on the diagonal."""
    alone = np.diag(weight)
    pairs = weight - np.diag(alone)
    heaviest = np.sort(pairs, axis=1)[:, len(weight) - max(room - 1, 0) :].sum(axis=1) if room > 1 else 0
    return float(np.sort(alone + heaviest / 2)[len(weight) - room :].sum())


def uncovered_tokens(
    routes: NDArray[np.int16],
    home: NDArray[np.int32],
    node: NDArray[np.int32],
    room: NDArray[np.int64],
    experts: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how many tokens must leave their node at least.

    Parameters
    ----------
    routes
        int16 [tokens, layers, picks].
    home, node
        Home rank of each token, node of each rank.
    room
        Experts that a node can hold, [nodes].

    Returns
    -------
    by_node, by_home
        Tokens of each node, float64 [layers, nodes], and of each home rank, float64 [layers, ranks].
    """
    layers, ranks, nodes = routes.shape[1], len(node), len(room)
    by_node, by_home = np.zeros((layers, nodes)), np.zeros((layers, ranks))
    groups = [(np.flatnonzero(node[home] == place), by_node, place, room[place]) for place in range(nodes)]
    groups += [(np.flatnonzero(home == rank), by_home, rank, room[node[rank]]) for rank in range(ranks)]
    for layer in range(layers):
        picks = np.ascontiguousarray(routes[:, layer])
        for members, out, index, space in groups:
            if space < experts and len(members):
                weight = np.sort(_even_weights(picks, members, experts, _PASSES))
                pairs = _even_pairs(picks, members, experts, _PASSES)
                by_pairs = pairs[np.triu_indices(experts)].sum() - _served_alone(pairs, int(space))
                # a token is a whole one; just below, so that rounding does not make it one too many
                out[layer, index] = max(weight[: experts - space].sum(), np.ceil(by_pairs - 1e-6))
    return by_node, by_home
