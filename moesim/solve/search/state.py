"""The state of the search: what one layer's placement does to every rank, kept up to date move by move.

Two things are kept. *Load*: the picks that each rank must compute, per scenario, expected over homes - which rank a
request lives on is the scheduler's choice, and a placement fitted to one deal of homes would not hold under the next.
*Counts*: copies that enter and leave each rank over the network card and inside the node, over a sample of *rows*,
tokens with a home rank. Giving an expert a new set of holders changes only the rows of the home ranks that are
served elsewhere from then on; these are found through an index (expert, home rank) -> rows. What
:mod:`moesim.solve.search.settle` counts from scratch must agree (a law in the tests), as must
:func:`moesim.placement.dispatch`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from moesim.placement.choices import nearest_column
from moesim.placement.kernels import compiled
from moesim.solve.search.cover import holding_nodes

TOKENS, NIC_IN, NIC_OUT, INSIDE_IN, INSIDE_OUT = range(5)
"""First axis of ``State.counts`` (whose ``TOKENS`` stay 0: ``State.load`` has them) and of a scale."""
COUNTERS: Final = 5

DIRECT, PER_RANK, PER_NODE, NOTHING = range(4)
"""How a token's copies are merged: not at all, per destination rank, per destination node; or traffic is constant."""

NEAREST, ROW_HASH, PICK_HASH, COVER = range(4)
"""Who serves a pick: nearest copy; copy by a key of the row; copy by a key of row and expert (for random policies);
the fewest nodes that hold all picks of the row."""


class State(NamedTuple):
    """Arrays of one layer, changed in place by the moves.

    Traffic: ``routes`` int16 [rows, picks]; ``home`` int32 and ``key`` int64 [rows]; ``indptr`` int64 [experts * ranks
    + 1] and ``rows`` int32 index the rows of each (expert, home rank); ``demand`` float64 [experts, scenarios];
    ``share`` float64 [ranks], the part of all tokens that live there.

    Ranks: ``node`` int32 [ranks]; ``landing`` int32 [ranks, nodes].

    Placement: ``slots`` int32 [ranks, slots]; ``held`` bool [experts, ranks]; ``copies`` int32 [experts]; ``serves``
    int32 [experts, ranks], the rank that serves an expert to each home rank, or, under hashes, the rank of each copy;
    ``served`` int32 [experts] copies; ``part`` float64 [experts, ranks], the part of an expert's work that a rank does.

    What it does: ``counts`` int64 [counters, ranks]; ``load`` float64 [ranks, scenarios]; ``at_rank`` uint8 [ranks,
    rows] and ``at_node`` uint8 [nodes, rows], picks of a row that are computed there, where copies merge: the rows of a
    home stand together, so that a move reads a few stretches of memory.

    Under ``COVER``: ``mask`` uint64 [experts], the nodes that hold an expert; ``before``, those that held it when its
    rows were last looked at; ``visits`` uint64 [rows]; ``log`` uint64 [2 * rows + 1, 2], rows that a move has changed
    and their visits before.

    Settings: ``even`` float64 [1], the part of an expert's work that its copies share evenly whoever is nearest;
    ``mode``, ``policy`` int64 [1], how copies are merged and who serves; ``scratch`` int64 [2, nodes].
    """

    routes: Any
    home: Any
    key: Any
    indptr: Any
    rows: Any
    node: Any
    landing: Any
    slots: Any
    held: Any
    copies: Any
    serves: Any
    served: Any
    part: Any
    counts: Any
    demand: Any
    share: Any
    load: Any
    even: Any
    mode: Any
    policy: Any
    scratch: Any
    visits: Any
    mask: Any
    before: Any
    log: Any
    at_rank: Any
    at_node: Any


@compiled
def choose(state: State, expert: int, out: Any) -> int:
    """Write the column of ``serves`` that follows from ``held``; return the number of copies."""
    ranks = len(state.node)
    holder = np.empty(ranks, np.int32)
    total = 0
    for rank in range(ranks):
        if state.held[expert, rank]:
            holder[total] = rank
            total += 1
            if total == state.copies[expert]:
                break
    if total == 1:
        out[:] = holder[0]
    elif state.policy[0] in (NEAREST, COVER):
        # the rank itself stands for its slot: the column then holds ranks
        nearest_column(expert, holder[:total], holder[:total], state.node, out, state.scratch)
    else:
        out[:total] = holder[:total]
    return total


@compiled
def spread(state: State, expert: int, serves: Any, served: int, out: Any) -> None:
    """Write the part of an expert's work that each rank does, float64 [ranks]; column and count of :func:`choose`."""
    ranks = len(state.node)
    out[:] = 0.0
    if served == 1:
        out[serves[0]] = 1.0
        return
    even = state.even[0] if state.policy[0] in (NEAREST, COVER) else 1.0
    if even < 1:
        for home in range(ranks):
            out[serves[home]] += (1 - even) * state.share[home]
    if even > 0:
        for rank in range(ranks):
            if state.held[expert, rank]:
                out[rank] += even / served


@compiled
def refresh(state: State, expert: int) -> None:
    """Bring the table, but neither load nor counts, up to date with ``state.held[expert]``."""
    state.served[expert] = choose(state, expert, state.serves[expert])
    spread(state, expert, state.serves[expert], state.served[expert], state.part[expert])
    state.mask[expert] = holding_nodes(state.held[expert], state.node)


@compiled
def pick_key(state: State, row: int, expert: int) -> int:
    """Return the key by which the copy of a pick is chosen."""
    if state.policy[0] == ROW_HASH:
        return int(state.key[row])
    # Fibonacci hashing: the high bits of the product are well mixed
    return int(((state.key[row] + expert) * 2654435769 & 0xFFFFFFFF) >> 8)


@compiled
def serving_rank(state: State, row: int, expert: int) -> int:
    """Return the rank that computes a pick of a row."""
    if state.policy[0] == NEAREST:
        return int(state.serves[expert, state.home[row]])
    copies = state.served[expert]
    return int(state.serves[expert, pick_key(state, row, expert) % copies if copies > 1 else 0])
