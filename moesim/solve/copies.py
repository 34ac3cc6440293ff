"""How many pairs and copies must leave their rank or node whatever the placement: from popularity and from pairs.

* *Popularity*: of the picks of some homes, a place that holds ``room`` experts serves at most those of the ``room``
  experts they pick most. This is exact for one place, and counts picks, not tokens. All places together hold every
  expert once, at best where it is picked most, and only what room is left goes to the picks that are then most.
* *Pairs*: a copy that serves k picks at one place holds k(k-1)/2 pairs of experts that lie there together. An expert
  with r copies lies with at most r(size-1) others, and there are only ``places x size`` copies, of which every expert
  takes one, so that only so many of the picked pairs can be served together. Copies are fewest when all are
  about the same size, as large as the pairs allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled
from moesim.solve.coverage import most_served


@compiled
def _count(routes: Any, home: Any, popularity: Any, weight: Any) -> None:
    """Count picks by home rank [ranks, experts] and pairs of picks [experts, experts] of one layer."""
    for token in range(routes.shape[0]):
        for one in range(routes.shape[1]):
            first = routes[token, one]
            if first < 0:
                continue
            popularity[home[token], first] += 1
            for other in range(one):
                second = routes[token, other]
                if second >= 0:
                    weight[first, second] += 1
                    weight[second, first] += 1


@dataclass(frozen=True, eq=False)
class Leaving:
    """What must leave at least, of one step.

    Attributes
    ----------
    pairs_home
        (Token, expert) pairs of each home rank, wherever they are served; [layers, ranks].
    copies_total
        Copies for ranks, those for the home rank counted too; [layers].
    pairs_away, copies_away
        Those for other ranks than home, [layers].
    copies_forwarded
        Copies for other ranks than the one where traffic of their home for that node lands, [layers].
    pairs_across, copies_across, nodes_across
        Pairs, copies for ranks, and copies for nodes that cross nodes; [layers].
    pairs_across_home, copies_across_home
        The same of each home rank on its own, [layers, ranks].
    active
        Experts that any token picks, [layers].
    servers_home
        Ranks of other nodes that serve tokens of each home rank, [layers, ranks].
    """

    pairs_home: Array
    copies_total: Array
    pairs_away: Array
    copies_away: Array
    copies_forwarded: Array
    pairs_across: Array
    copies_across: Array
    nodes_across: Array
    pairs_across_home: Array
    copies_across_home: Array
    active: Array
    servers_home: Array

    @property
    def pairs(self) -> Array:
        """All (token, expert) pairs, [layers]."""
        return np.asarray(self.pairs_home.sum(axis=1))


def leaving(routes: Array, home: Array, node: Array, landing: Array, experts: int, slots: int) -> Leaving:
    """Count what must leave.

    Parameters
    ----------
    routes
        int16 [tokens, layers, picks].
    home, node, landing
        Home rank of each token, node of each rank, where traffic of each rank lands in each node [ranks, nodes].
    slots
        Experts that a rank can hold.
    """
    ranks, nodes, layers, picks = len(node), int(node.max()) + 1, routes.shape[1], routes.shape[2]
    room = np.minimum(np.bincount(node) * slots, experts)
    whole = (-(-(routes >= 0).sum(axis=2) // slots)).sum(axis=0)
    rail, rail_room = _rails(landing, slots)
    parts = []
    for layer in range(layers):
        popularity, weight = np.zeros((ranks, experts), np.int64), np.zeros((experts, experts), np.int64)
        _count(np.ascontiguousarray(routes[:, layer]), home, popularity, weight)
        total = int(popularity.sum())
        by_node = np.array([popularity[node == place].sum(axis=0) for place in range(nodes)])
        on_rank = pairs_together(weight, ranks * slots, slots)
        in_node = pairs_together(weight, int(room.sum()), int(room.max()))
        away = total - most_served(popularity, np.full(ranks, slots))
        by_rail = np.array([popularity[rail == place].sum(axis=0) for place in range(len(rail_room))])
        forwarded = total - most_served(by_rail, rail_room)
        across = total - most_served(by_node, room)
        across_home = _beyond(popularity, room[node])
        most = min(slots, picks)
        parts.append(
            (
                popularity.sum(axis=1),
                # a token visits whole ranks
                max(fewest_copies(total, on_rank, most), float(whole[layer])),
                away,
                fewest_copies(away, on_rank, most),
                fewest_copies(forwarded, on_rank, most),
                across,
                fewest_copies(across, on_rank, most),
                fewest_copies(across, in_node, min(int(room.max()), picks)),
                across_home,
                np.array([fewest_copies(one, on_rank, most) for one in across_home]),
                int((by_node.sum(axis=0) > 0).sum()),
                # what the own node has no room for lies on so many ranks elsewhere
                np.ceil(np.maximum((popularity > 0).sum(axis=1) - room[node], 0) / slots),
            )
        )
    return Leaving(*(np.array(part, np.float64) for part in zip(*parts, strict=True)))


def _rails(landing: Array, slots: int) -> tuple[Array, Array]:
    """Return which ranks keep copies at the same landing ranks [ranks], and how many experts those hold [rails]."""
    kept, rail = np.unique(np.sort(landing, axis=1), axis=0, return_inverse=True)
    return rail.ravel(), np.full(len(kept), landing.shape[1] * slots)


def _beyond(popularity: Array, room: Array) -> Array:
    """Return picks of each row [rows, experts] beyond those of its ``room`` most picked experts, [rows]."""
    lightest = np.cumsum(np.sort(popularity, axis=1), axis=1)
    left = popularity.shape[1] - room
    return np.where(left > 0, lightest[np.arange(len(room)), np.maximum(left, 1) - 1], 0).astype(np.float64)


def pairs_together(weight: Array, copies: int, size: int) -> float:
    """Return how many picked pairs can lie together at most, where places of ``size`` hold ``copies`` experts in all.

    Parameters
    ----------
    weight
        How often a token picks two experts, [experts, experts], symmetric.
    """
    experts = len(weight)
    others = size - 1
    if others < 1 or experts < 2:
        return 0.0
    blocks = -(-(experts - 1) // others)
    ordered = np.zeros((experts, blocks * others))
    ordered[:, : experts - 1] = np.sort(weight - np.diag(np.diag(weight)), axis=1)[:, :0:-1]
    by_copy = ordered.reshape(experts, blocks, others).sum(axis=2)
    # every expert has one copy; the others go where the next heaviest partners are
    further = np.sort(by_copy[:, 1:], axis=None)[::-1][: max(copies - experts, 0)]
    return min(float(by_copy[:, 0].sum() + further.sum()) / 2, float(weight.sum()) / 2)


def fewest_copies(picks: float, pairs: float, most: int) -> float:
    """Return the fewest copies that serve ``picks`` with at most ``pairs`` together and ``most`` picks a copy."""
    if picks <= 0:
        return 0.0
    size = np.arange(1, most + 1)
    # k picks of one copy: 1/k copies and (k-1)/2 pairs a pick; between whole sizes two of them are mixed
    return float(picks * np.interp(pairs / picks, (size - 1) / 2, 1 / size))
