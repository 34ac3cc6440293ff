"""Compiled replica choices: which copy of an expert a token or a source rank uses."""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled, splitmix64, write_row


@compiled
def nearest_column(expert: int, rank: Array, slot: Array, node: Array, column: Array, scratch: Array) -> None:
    """Choose the copy of one expert that every source rank uses: own rank, else own node, else any.

    Parameters
    ----------
    expert
        Logical expert; where several copies are equally near, it turns the order in which they are dealt out, so that
        left-over sources do not pile up on the first copies.
    rank, slot
        int32 [holders]: ranks that hold the expert, ascending, and the physical slot on each.
    node
        int32 [ranks].
    column
        int32 [ranks], output: physical slot each source rank uses.
    scratch
        int64 [2, nodes]: working space.
    """
    copies = len(rank)
    here, dealt = scratch
    here[:] = 0
    for holder in range(copies):
        here[node[rank[holder]]] += 1
    for place in range(len(here)):
        # counting on from here and wrapping around: a division per source would take most of the time
        dealt[place] = expert % max(here[place], 1)
    dealt_anywhere = expert % max(copies, 1)
    following = 0
    for source in range(len(node)):
        place = node[source]
        if following < copies and rank[following] == source:
            column[source] = slot[following]
            following += 1
        elif here[place]:
            wanted = dealt[place]
            dealt[place] = wanted + 1 if wanted + 1 < here[place] else 0
            for holder in range(copies):
                if node[rank[holder]] == place:
                    if wanted == 0:
                        column[source] = slot[holder]
                        break
                    wanted -= 1
        else:
            column[source] = slot[dealt_anywhere]
            dealt_anywhere = dealt_anywhere + 1 if dealt_anywhere + 1 < copies else 0


@compiled
def nearest_layer(indptr: Array, rank: Array, slot: Array, node: Array, table: Array) -> None:
    """Fill ``table`` int32 [ranks, experts] of one layer; holders as compressed rows, ``slot`` physical."""
    scratch = np.empty((2, node.max() + 1), np.int64)
    column = np.empty(len(node), np.int32)
    # most experts have one copy, the same for every source
    for source in range(len(node)):
        for expert in range(len(indptr) - 1):
            table[source, expert] = slot[indptr[expert]]
    by_expert = table.T
    for expert in range(len(indptr) - 1):
        first, last = indptr[expert], indptr[expert + 1]
        if last - first > 1:
            nearest_column(expert, rank[first:last], slot[first:last], node, column, scratch)
            write_row(by_expert, expert, column)


@compiled
def wrong_entry(table: Array, physical_to_logical: Array) -> tuple[int, int]:
    """Return rank and expert of the first entry of ``table`` whose slot does not hold the expert, or -1 and -1."""
    for source in range(table.shape[0]):
        for expert in range(table.shape[1]):
            slot = table[source, expert]
            if slot < 0 or slot >= len(physical_to_logical) or physical_to_logical[slot] != expert:
                return source, expert
    return -1, -1


@compiled
def wrong_pick(slots: Array, routes: Array, physical_to_logical: Array) -> int:
    """Return the first row of ``slots`` [tokens, picks] with a slot that does not hold the expert picked, or -1."""
    for token in range(routes.shape[0]):
        for pick in range(routes.shape[1]):
            slot = slots[token, pick]
            if slot < 0:
                if routes[token, pick] >= 0:
                    return token
            elif slot >= len(physical_to_logical) or physical_to_logical[np.uintp(slot)] != routes[token, pick]:
                return token
    return -1


@compiled
def hash_picks(routes: Array, group_ptr: Array, indptr: Array, slot: Array, out: Array) -> None:
    """Choose copies by the row of the token in its home rank's batch, as vLLM does (``base_router.py``).

    ``copy = ((row * 2654435769) & 0xffffffff) % copies``, copies in the order of physical slots.
    """
    copies = (indptr[1:] - indptr[:-1]).astype(np.float64)
    share = 1.0 / copies
    first = indptr.astype(np.uintp)
    for home in range(len(group_ptr) - 1):
        for token in range(group_ptr[home], group_ptr[home + 1]):
            mixed = np.float64(((token - group_ptr[home]) * 2654435769) & 0xFFFFFFFF)
            for pick in range(routes.shape[1]):
                if routes[token, pick] < 0:
                    out[token, pick] = -1
                    continue
                expert = np.uintp(routes[token, pick])
                # the remainder without an integer division: exact, because the hash has 32 bits and
                # (hash + 1/2) / copies is at least 1 / (2 copies) from a whole number, far above rounding
                quotient = np.float64(np.int64((mixed + 0.5) * share[expert]))
                out[token, pick] = slot[first[expert] + np.uintp(mixed - quotient * copies[expert])]


@compiled
def random_picks(routes: Array, group_ptr: Array, indptr: Array, slot: Array, key: int, out: Array) -> None:
    """Choose every copy at random; the same key, home rank, row and expert give the same copy.

    The generator is SplitMix64 on a counter.
    """
    for home in range(len(group_ptr) - 1):
        for token in range(group_ptr[home], group_ptr[home + 1]):
            place = (np.uint64(home) << np.uint64(32)) + np.uint64(token - group_ptr[home])
            for pick in range(routes.shape[1]):
                expert = routes[token, pick]
                if expert < 0:
                    out[token, pick] = -1
                else:
                    drawn = splitmix64(np.uint64(key) ^ splitmix64(place * np.uint64(65536) + np.uint64(expert)))
                    copies = np.uint64(indptr[expert + 1] - indptr[expert])
                    out[token, pick] = slot[indptr[expert] + np.int64(drawn % copies)]
