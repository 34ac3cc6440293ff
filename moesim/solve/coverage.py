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

from moesim.base.compiled import compiled

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
    # mirrored where tokens lie alone: most pairs of a small group are empty, and the matrix is large
    for index in range(len(members)):
        first, second = chosen[index]
        if first >= 0:
            weight[second, first] = weight[first, second]
    return weight


def _side(weight: NDArray[np.int64], room: int) -> NDArray[np.float64]:
    """Return the most units on the diagonal and on pairs that each expert adds to ``room`` experts, from its side."""
    alone = weight.diagonal()
    if room <= 1:
        return np.asarray(alone, np.float64)
    heaviest = weight.sum(axis=1) - alone
    # with no more partners than there is room beside an expert, all of them are its heaviest
    crowded = np.flatnonzero((weight > 0).sum(axis=1) - (alone > 0) > room - 1)
    if crowded.size:
        pairs = weight[crowded]
        pairs[np.arange(len(crowded)), crowded] = 0
        heaviest[crowded] = np.sort(pairs, axis=1)[:, len(weight) - room + 1 :].sum(axis=1)
    return np.asarray(alone + heaviest / 2)


def most_served(value: NDArray[Any], room: NDArray[Any]) -> float:
    """Return the most value that places can hold.

    Parameters
    ----------
    value
        What an expert is worth at a place, [places, experts].
    room
        Experts that a place can hold, [places]; every expert lies at one place at least, if there is room for all.
    """
    experts = value.shape[1]
    ordered = np.sort(value, axis=1)[:, ::-1]
    held = np.minimum(room, experts)
    alone = float(ordered[np.arange(experts) < held[:, None]].sum())
    # once at its best place, then whatever is worth most
    copies = np.sort(value, axis=0)[::-1]
    further = np.sort(copies[1:], axis=None)[::-1][: max(int(held.sum()) - experts, 0)]
    return min(alone, float(copies[0].sum() + further.sum()))


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
    together, by_home
        Tokens of all nodes, float64 [layers], and of each home rank, float64 [layers, ranks].
    """
    layers, ranks, nodes = routes.shape[1], len(node), len(room)
    together, by_home = np.zeros(layers), np.zeros((layers, ranks))
    of_node = [np.flatnonzero(node[home] == place) for place in range(nodes)]
    of_home = [np.flatnonzero(home == rank) for rank in range(ranks)]
    for layer in range(layers):
        picks = np.ascontiguousarray(routes[:, layer])
        together[layer] = _leave(picks, of_node, room, experts)
        for rank, members in enumerate(of_home):
            by_home[layer, rank] = _leave(picks, [members], room[node[rank]][None], experts)
    return together, by_home


def _leave(picks: NDArray[np.int16], groups: list[NDArray[np.int64]], room: NDArray[np.int64], experts: int) -> float:
    """Return how many tokens of groups leave their places, one place a group, at least."""
    units, sides, leaves, units_total = [], [], 0.0, 0
    for members, space in zip(groups, room.tolist(), strict=True):
        single = _even_weights(picks, members, experts, _PASSES)
        pairs = _even_pairs(picks, members, experts, _PASSES)
        side, total = _side(pairs, space), int(single.sum())
        # a token is a whole one; just below, so that rounding does not make it one too many
        by_pairs = np.ceil(total - np.sort(side)[experts - space :].sum() - 1e-6)
        leaves += max(float(np.sort(single)[: experts - space].sum()), float(by_pairs), 0.0)
        units.append(single)
        sides.append(side)
        units_total += total
    if len(groups) > 1:
        for value in (units, sides):
            leaves = max(leaves, float(np.ceil(units_total - most_served(np.array(value), room) - 1e-6)))
    return leaves
