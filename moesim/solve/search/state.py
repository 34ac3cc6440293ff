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

from moesim.base.compiled import compiled
from moesim.placement.choices import nearest_column
from moesim.solve.search.bits import Crowd, Sets
from moesim.solve.search.cover import holding_nodes

TOKENS, NIC_IN, NIC_OUT, INSIDE_IN, INSIDE_OUT = range(5)
"""First axis of ``State.counts`` (whose ``TOKENS`` stay 0: ``State.load`` has them) and of a scale."""
COUNTERS: Final = 5

DIRECT, PER_RANK, PER_NODE, NOTHING = range(4)
"""How a token's copies are merged: not at all, per destination rank, per destination node; or traffic is constant."""

NEAREST, ROW_HASH, PICK_HASH, COVER = range(4)
"""Who serves a pick: nearest copy; copy by a key of the row; copy by a key of row and expert (for random policies); or
the fewest nodes that hold all picks of the row."""


class State(NamedTuple):
    """Arrays of one layer, changed in place by the moves.

    Traffic: ``routes`` int16 [rows, picks]; ``home`` int32 and ``key`` int64 [rows]; ``indptr`` int64 [experts * ranks
    + 1] and ``rows`` int32 index the rows of each (expert, home rank); ``demand`` float64 [experts, scenarios];
    ``share`` float64 [ranks], the part of all tokens that live there; ``unit`` float64 [ranks], time of a pick.

    Ranks: ``node`` int32 [ranks]; ``landing`` int32 [ranks, nodes].

    Placement: ``slots`` int32 [ranks, slots]; ``held`` bool [experts, ranks]; ``copies`` int32 [experts]; ``serves``
    int32 [experts, ranks], the rank that serves an expert to each home rank, or, under hashes, the rank of each copy;
    ``served`` int32 [experts] copies; ``part`` float64 [experts, ranks], the part of an expert's work that a rank does.

    What it does: ``counts`` int64 [counters, ranks]; ``load`` float64 [ranks, scenarios]. Where copies merge, also the
    picks of a row that are computed at each place: under hashes ``at_rank`` uint8 [ranks, rows] and ``at_node`` uint8
    [nodes, rows], under ``NEAREST`` the same as bits, ``on_rank`` and ``on_node``, of the rows in ``sets``.

    Under ``COVER``: ``mask`` uint64 [experts], the nodes that hold an expert; ``before``, those that held it when its
    rows were last looked at; ``visits`` uint64 [rows]; ``log`` uint64 [2 * rows + 1, 2], rows that a move has changed
    and their visits before.

    Settings: ``even`` float64 [1], the part of an expert's work that its copies share evenly whoever is nearest;
    ``poured`` bool [1], whether they share every batch so that ranks are as even as they can be, whoever picks;
    ``mode``, ``policy`` int64 [1], how copies are merged and who serves; ``itself`` int32 [ranks], the
    numbers of the ranks; ``scratch`` int64 [2, nodes], ``holder`` int32 [ranks], ``left`` and ``came`` int64 [2,
    ranks], working space.
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
    unit: Any
    load: Any
    even: Any
    poured: Any
    mode: Any
    policy: Any
    scratch: Any
    holder: Any
    itself: Any
    left: Any
    came: Any
    visits: Any
    mask: Any
    before: Any
    log: Any
    at_rank: Any
    at_node: Any
    sets: Sets
    on_rank: Crowd
    on_node: Crowd


@compiled
def choose(
    expert: int, held: Any, copies: Any, node: Any, policy: int, holder: Any, scratch: Any, serves: Any, index: int
) -> int:
    """Write ``serves[index]``, the column that follows from ``held[expert]``; return the number of copies.

    Like all that is called for every move or row it takes arrays of the state alone: handing over the whole of it takes
    longer than what is done with it, and longer to compile.
    """
    total = 0
    for rank in range(len(node)):
        if held[expert, rank]:
            holder[total] = rank
            total += 1
            if total == copies[expert]:
                break
    if policy not in (NEAREST, COVER):
        for copy in range(total):
            serves[index, copy] = holder[copy]
    elif total == 1:
        for home in range(len(node)):
            serves[index, home] = holder[0]
    else:
        # the rank itself stands for its slot: the column then holds ranks
        nearest_column(expert, holder[:total], holder[:total], node, serves[index], scratch)
    return total


@compiled
def spread(served: int, holder: Any, share: Any, even: float, serves: Any, part: Any, index: int) -> None:
    """Write ``part[index]``, the part of an expert's work that each rank does, after :func:`choose`.

    Parameters
    ----------
    even
        Part of the work that copies share evenly; 1 under hashes.
    """
    for rank in range(len(share)):
        part[index, rank] = 0.0
    if served == 1:
        part[index, holder[0]] = 1.0
        return
    if even < 1:
        for home in range(len(share)):
            part[index, serves[index, home]] += (1 - even) * share[home]
    if even > 0:
        for copy in range(served):
            part[index, holder[copy]] += even / served


@compiled
def evenly(policy: int, even: Any) -> float:
    """Return the part of an expert's work that its copies share evenly."""
    return float(even[0] if policy in (NEAREST, COVER) else 1.0)


@compiled
def refresh(state: State, expert: int) -> None:
    """Bring the table, but neither load nor counts, up to date with ``state.held[expert]``."""
    state.served[expert] = choose(
        expert, state.held, state.copies, state.node, state.policy[0], state.holder, state.scratch, state.serves, expert
    )
    even = evenly(state.policy[0], state.even)
    spread(state.served[expert], state.holder, state.share, even, state.serves, state.part, expert)
    state.mask[expert] = holding_nodes(state.held[expert], state.node)


@compiled
def pick_key(policy: int, key: Any, row: int, expert: int) -> int:
    """Return the key by which the copy of a pick is chosen."""
    if policy == ROW_HASH:
        return int(key[row])
    # Fibonacci hashing: the high bits of the product are well mixed
    return int(((key[row] + expert) * 2654435769 & 0xFFFFFFFF) >> 8)


@compiled
def serving_rank(policy: int, serves: Any, served: Any, home: Any, key: Any, row: int, expert: int) -> int:
    """Return the rank that computes a pick of a row."""
    if policy == NEAREST:
        return int(serves[expert, home[row]])
    copies = served[expert]
    return int(serves[expert, pick_key(policy, key, row, expert) % copies if copies > 1 else 0])
