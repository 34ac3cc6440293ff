"""What a move would do to the network, guessed from pairs of picks: a few look-ups tell which moves are worth counting.

Counting a move means looking at some thousand rows, and most moves are then taken back. How much more two experts
that are picked together cost when they part, and less when they meet, is known beforehand from how often they are.
The guess is turned into seconds by regression on the moves that were counted, which also tells how far it is off;
where it is worth nothing (a transport or policy for which nodes do not matter), that is learned as well.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from moesim.base.compiled import compiled
from moesim.solve.search.state import State
from moesim.trace.kernels import count_pairs

_LEARN: Final = 200.0
"""Moves to count before the guess is used."""
_KEEP: Final = 0.999
"""What a counted move keeps of its weight with every further one: what moves cost changes as the search cools."""


class Screen(NamedTuple):
    """The guess and what is known about it, changed in place.

    ``pairs`` float64 [experts, experts], how often two experts are picked together, as a share of all pairs; ``worth``
    float64 [experts, experts], what the two save on one node; ``here`` int32 [experts, nodes], copies on a node;
    ``near`` float64 [experts, nodes], what an expert saves there; ``fit`` float64 [4]: weight of the counted moves,
    their sums of guess times guess, of guess times seconds, and of the squared error of the seconds.
    """

    pairs: Any
    worth: Any
    here: Any
    near: Any
    fit: Any


def make_screen(state: State) -> Screen:
    """Return a screen for the placement in ``state``, which knows nothing of seconds yet."""
    experts, nodes = len(state.copies), state.landing.shape[1]
    pairs = count_pairs(state.routes, state.routes, experts).astype(np.float64)
    np.fill_diagonal(pairs, 0.0)
    pairs /= max(float(pairs.sum()), 1.0)
    screen = Screen(pairs, pairs.copy(), np.zeros((experts, nodes), np.int32), np.zeros((experts, nodes)), np.zeros(4))
    look_again(screen, state)
    return screen


def look_again(screen: Screen, state: State) -> None:
    """Take in the placement in ``state``, in which copies weigh less the more there are."""
    for place in range(screen.here.shape[1]):
        screen.here[:, place] = state.held[:, state.node == place].sum(axis=1)
    copies = np.maximum(state.copies, 1)
    screen.worth[:] = screen.pairs / np.sqrt(np.outer(copies, copies))
    screen.near[:] = screen.worth @ (screen.here > 0)


@compiled
def guess(here: Any, near: Any, worth: Any, first: int, second: int, old: int, new: int) -> float:
    """Return the guess where ``new`` comes to node ``first`` and ``old``, if any, leaves it; more is slower.

    Where ``second`` is not -1 they are exchanged: ``new`` leaves that node, and ``old`` goes there. For the arrays see
    :class:`Screen`.
    """
    if first == second:
        return 0.0
    change = 0.0
    gone = old >= 0 and here[old, first] == 1
    if gone:
        change += near[old, first]
    if here[new, first] == 0:
        change -= near[new, first] - (worth[old, new] if gone else 0.0)
    if second >= 0:
        gone = here[new, second] == 1
        if gone:
            change += near[new, second]
        if old >= 0 and here[old, second] == 0:
            change -= near[old, second] - (worth[old, new] if gone else 0.0)
    return change


@compiled
def at_best(fit: Any, change: float, margin: float) -> float:
    """Return the seconds that a move changes the network's time by, less ``margin`` times what guesses are off by."""
    weight, square, product, error = fit
    if weight < _LEARN or square <= 0 or margin == np.inf:
        return -np.inf
    return float(product / square * change - margin * np.sqrt(error / weight))


@compiled
def learn(fit: Any, change: float, seconds: float) -> None:
    """Take in the seconds that a counted move changed the network's time by."""
    slope = fit[2] / fit[1] if fit[1] > 0 else 0.0
    off = seconds - slope * change
    fit *= _KEEP
    fit[0] += 1
    fit[1] += change * change
    fit[2] += change * seconds
    fit[3] += off * off


@compiled
def look_at(screen: Screen, node: Any, held: Any, expert: int) -> None:
    """Take in who holds an expert now: ``node`` [ranks], ``held`` [experts, ranks]."""
    here, near, worth = screen.here, screen.near, screen.worth
    nodes = here.shape[1]
    before = here[expert] > 0
    here[expert] = 0
    for rank in range(len(node)):
        here[expert, node[rank]] += held[expert, rank]
    for place in range(nodes):
        after = here[expert, place] > 0
        if before[place] != after:
            sign = 1.0 if after else -1.0
            for other in range(len(worth)):
                near[other, place] += sign * worth[other, expert]
