"""Rows that visit the fewest nodes which hold all their picks, as the ``token-aware`` policy sends them.

Which nodes hold an expert is kept as four bits per node of one word, so that adding up the words of some experts
counts for every node how many of them it holds.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from moesim.base.compiled import compiled

NODES: Final = 16
"""Most nodes that fit a word."""
PICKS: Final = 15
"""Most picks that four bits can count."""
NIC_IN: Final = 1
NIC_OUT: Final = 2


@compiled
def holding_nodes(held: Any, node: Any) -> Any:
    """Return the nodes that hold an expert, from ``held`` bool [ranks]."""
    found = np.uint64(0)
    for rank in range(len(node)):
        if held[rank]:
            found |= np.uint64(1) << np.uint64(4 * node[rank])
    return found


@compiled
def cover_row(picked: Any, mask: Any, own: int, turn: int, nodes: int) -> Any:
    """Return the nodes other than ``own`` that a row visits: greedily the one that holds most of what is left.

    Parameters
    ----------
    picked
        Experts of the row, -1 for none.
    mask
        Nodes that hold each expert, uint64 [experts].
    turn
        Of nodes that hold equally many the first after ``turn`` is taken, so that ties spread.
    """
    home = np.uint64(1) << np.uint64(4 * own)
    visited = home
    start = -1
    while True:
        count, left = np.uint64(0), 0
        for expert in picked:
            if expert >= 0:
                where = mask[np.uint64(expert)]
                if not where & visited:
                    left += 1
                    count += where
        if left == 0:
            return visited ^ home
        if start < 0:
            start = turn % nodes
        # the first after `turn` comes to the lowest bits
        if start:
            count = count >> np.uint64(4 * start) | count << np.uint64(64 - 4 * start)
        best, most, place = 0, 0, 0
        while count:
            held = int(count & np.uint64(15))
            if held > most:
                best, most = place, held
            count >>= np.uint64(4)
            place += 1
        visited |= np.uint64(1) << np.uint64(4 * ((best + start) & 15))
        if most == left:
            return visited ^ home


@compiled
def count_cover(counts: Any, landing: Any, home: int, visited: Any, amount: int) -> None:
    """Add ``amount`` copies to every node in ``visited``, landing at ``landing`` [nodes]."""
    place = 0
    while visited:
        if visited & np.uint64(1):
            counts[NIC_OUT, home] += amount
            counts[NIC_IN, landing[place]] += amount
        visited >>= np.uint64(4)
        place += 1
