"""How many tokens must leave their node whatever the placement: a bound from token sets.

A node that can hold ``room`` of E experts serves a token alone only if it holds all its picks. Give every token's
unit weight to one of its picks; whichever experts the node lacks, the tokens whose unit lies on them must leave. So at
least the sum of the ``E - room`` smallest expert weights leave. Units are moved to the lighter picks in a few passes,
which evens out the weights and sharpens the bound; any split is valid, and a perfectly even one is the dual optimum of
the covering problem.
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
                out[layer, index] = weight[: experts - space].sum()
    return by_node, by_home
