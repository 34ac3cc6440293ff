"""A start for the search: experts that tokens pick together on one node, by swaps between nodes.

Tokens are a hypergraph over experts; a node that holds all picks of a token is the only one it visits. Every pair of
picks stands for its token in part (a clique of weight ``1 / (picks - 1)``, as partitioners of hypergraphs expand
nets), so that a swap of two copies between nodes is priced by a few sums, some hundred times faster than the search
prices it by tokens. Copies weigh less the more there are: homes near one of them do not ask for the others. Balance
between nodes is a price in the same sum; within a node copies go to ranks heaviest first.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.base.compiled import compiled
from moesim.solve.packing import greedy_copies
from moesim.solve.repair import EMPTY
from moesim.trace.kernels import count_pairs

_TRIES: Final = 16
"""Random starts of a layer."""
_SWEEPS: Final = 30
"""Most looks at all pairs of copies in a try."""
_SPREAD: Final = 0.5
"""How far the order of copies by load is shaken between tries, as a share of their load."""


def together(
    routes: NDArray[np.int16],
    load: ArrayLike,
    node: NDArray[np.int32],
    slots: int,
    *,
    speed: ArrayLike | None = None,
    seed: int = 0,
) -> NDArray[np.int32]:
    """Return a placement with experts that are picked together on the same nodes, int32 [layers, ranks, slots].

    Slots that only copies of what their rank already holds could fill stay empty.

    Parameters
    ----------
    routes
        Experts of each token, int16 [tokens, layers, picks], -1 for none.
    load
        Load of each expert, [layers, experts].
    node
        Node of each rank, [ranks]; every rank has ``slots`` slots, together at least as many as there are experts.
    speed
        Relative speed of each rank, [ranks]; equal ones by default.
    seed
        Of the random starts.
    """
    load = np.ascontiguousarray(load, dtype=np.float64)
    layers, experts = load.shape
    ranks, nodes = len(node), int(node.max()) + 1
    pace = np.ones(ranks) if speed is None else np.asarray(speed, dtype=np.float64)
    node_pace = np.bincount(node, weights=pace, minlength=nodes) / pace.mean()
    seats = np.bincount(node, minlength=nodes) * slots
    # further copies on a node save no traffic: only where slots are left
    copies = greedy_copies(load, ranks * slots, min(ranks, max(nodes, -(-ranks * slots // experts))))
    out = np.full((layers, ranks, slots), EMPTY, np.int32)
    rng = np.random.default_rng([seed, 2])
    for layer in range(layers):
        item = np.repeat(np.arange(experts), copies[layer])
        share = load[layer, item] / copies[layer, item]
        affinity, price = _affinity(np.ascontiguousarray(routes[:, layer]), copies[layer], share, node_pace)
        best, found = -np.inf, np.zeros(len(item), np.int64)
        for attempt in range(_TRIES):
            shaken = share * (1 + _SPREAD * rng.uniform(-1, 1, len(item)) * (attempt > 0))
            at = _dealt(np.argsort(-shaken, kind="stable"), share, item, experts, seats, node_pace)
            value = _swap(affinity, item, share, at, node_pace, price, _SWEEPS)
            if value > best:
                best, found = value, at
        _seat(out[layer], np.argsort(-share, kind="stable"), item, share, found, node, pace, experts)
    return out


def _affinity(
    routes: NDArray[np.int16], copies: NDArray[np.int32], share: NDArray[np.float64], pace: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return what two copies on one node are worth, float64 [experts, experts], and the price of squared node loads.

    A node without its part of the load costs as much as all pairs that a placement at random keeps together.
    """
    pairs = count_pairs(routes, routes, len(copies)).astype(np.float64)
    np.fill_diagonal(pairs, 0.0)
    worth = pairs / max(routes.shape[1] - 1, 1) / np.sqrt(np.outer(copies, copies))
    inside = float(copies @ worth @ copies) / (2 * len(pace))
    price = inside / max(float(share.sum()) ** 2 / len(pace), 1e-300)
    # two copies of an expert on one node only where there is no other way
    np.fill_diagonal(worth, -50 * max(float(worth.max()), 1e-12))
    return worth, price


@compiled
def _dealt(order: Any, share: Any, item: Any, experts: int, seats: Any, pace: Any) -> Any:
    """Return a node for every copy, int64 [copies]: in order, to the node that then is done first."""
    nodes = len(seats)
    at = np.zeros(len(order), np.int64)
    held = np.zeros((nodes, experts), np.bool_)
    load, used = np.zeros(nodes), np.zeros(nodes, np.int64)
    for copy in order:
        best, soonest, twice = -1, np.inf, True
        for place in range(nodes):
            if used[place] == seats[place]:
                continue
            again = held[place, item[copy]]
            done = (load[place] + share[copy]) / pace[place]
            if (twice and not again) or (twice == again and done < soonest):
                best, soonest, twice = place, done, again
        at[copy] = best
        held[best, item[copy]] = True
        load[best] += share[copy]
        used[best] += 1
    return at


@compiled
def _swap(worth: Any, item: Any, share: Any, at: Any, pace: Any, price: float, sweeps: int) -> float:
    """Swap copies between nodes, in ``at``, as long as that gains; return what the placement is worth."""
    nodes, experts, total = len(pace), len(worth), len(item)
    near = np.zeros((experts, nodes))
    load = np.zeros(nodes)
    for copy in range(total):
        load[at[copy]] += share[copy]
        for expert in range(experts):
            near[expert, at[copy]] += worth[expert, item[copy]]
    enough = 1e-9 * price * share.sum() ** 2
    for _ in range(sweeps):
        swapped = False
        for one in range(total):
            for other in range(one):
                here, there, e, f = at[one], at[other], item[one], item[other]
                if here == there or e == f:
                    continue
                gain = near[e, there] - near[e, here] + worth[e, e] + near[f, here] - near[f, there] + worth[f, f]
                gain -= 2 * worth[e, f]
                more = share[other] - share[one]
                gain -= price * more * ((2 * load[here] + more) / pace[here] - (2 * load[there] - more) / pace[there])
                if gain <= enough:
                    continue
                swapped = True
                at[one], at[other] = there, here
                load[here] += more
                load[there] -= more
                for expert in range(experts):
                    change = worth[expert, f] - worth[expert, e]
                    near[expert, here] += change
                    near[expert, there] -= change
        if not swapped:
            break
    value = 0.0
    for copy in range(total):
        value += (near[item[copy], at[copy]] - worth[item[copy], item[copy]]) / 2
    for place in range(nodes):
        value -= price * load[place] ** 2 / pace[place]
    return value


@compiled
def _seat(out: Any, order: Any, item: Any, share: Any, at: Any, node: Any, pace: Any, experts: int) -> None:
    """Put copies on the ranks of their nodes, in order, each on the rank that then is done first; fills ``out``."""
    ranks, slots = out.shape
    held = np.zeros((experts, ranks), np.bool_)
    load, used = np.zeros(ranks), np.zeros(ranks, np.int64)
    for copy in order:
        expert = item[copy]
        best, soonest = -1, np.inf
        for rank in range(ranks):
            if node[rank] != at[copy] or used[rank] == slots or held[expert, rank]:
                continue
            done = (load[rank] + share[copy]) / pace[rank]
            if done < soonest:
                best, soonest = rank, done
        if best < 0:
            continue  # all with room hold it already
        out[best, used[best]] = expert
        held[expert, best] = True
        load[best] += share[copy]
        used[best] += 1
