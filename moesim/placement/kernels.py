"""The inner loops, compiled: one layer of one batch from routes to counts.

All kernels work on *grouped* tokens: the rows of one home rank stand together, ``indptr[r]`` to
``indptr[r + 1] - 1`` for rank r (see :func:`group`). Home ranks then share nothing but ``slot_tokens`` and ``forward``,
and every counter a token touches stays in the first-level cache. A token is counted once per rank and node by a stamp:
an array that remembers which token was seen there last. Indices are unsigned in the inner loops because signed ones
cost a test for negative values each.

An output of size 0 is not wanted and stays untouched; the others are overwritten. The kernels release the GIL, so
callers may run layers in threads.
"""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled, write_row


@compiled
def group(home: Array, ranks: int) -> tuple[Array, Array]:
    """Return ``order`` int64 [tokens] that sorts tokens by home rank, stable, and ``indptr`` int64 [ranks + 1]."""
    indptr = np.zeros(ranks + 1, np.int64)
    for token in range(len(home)):
        indptr[home[token] + 1] += 1
    for rank in range(ranks):
        indptr[rank + 1] += indptr[rank]
    following = indptr[:-1].copy()
    order = np.empty(len(home), np.int64)
    for token in range(len(home)):
        order[following[home[token]]] = token
        following[home[token]] += 1
    return order, indptr


@compiled
def gather(routes: Array, order: Array, layers: Array, out: Array) -> None:
    """Copy some layers of ``routes`` [tokens, layers, words] to ``out`` [some layers, tokens, words] in ``order``."""
    words = routes.shape[2]
    for row in range(len(order)):
        token = order[row]
        for index in range(len(layers)):
            for word in range(words):
                out[index, row, word] = routes[token, layers[index], word]


@compiled
def _store(
    home: int,
    target: int,
    copies: float,
    node: Array,
    position: Array,
    landing: Array,
    rank_copies: Array,
    forward: Array,
) -> None:
    if rank_copies.size:
        rank_copies[home, target] = copies
    if forward.size:
        # a copy for another node goes first to its landing rank there, then on to the expert rank
        forward[landing[home, node[target]], position[target]] += copies


@compiled
def _store_row(
    home: int,
    copies: Array,
    node: Array,
    position: Array,
    landing: Array,
    rank_copies: Array,
    forward: Array,
) -> None:
    # the same for all ranks at once, which is faster where most of them are reached
    if rank_copies.size:
        write_row(rank_copies, home, copies)
    if forward.size:
        for target in range(len(node)):
            if copies[target] != 0:
                forward[landing[home, node[target]], position[target]] += copies[target]
    copies[:] = 0


@compiled
def flow_table(
    routes: Array,
    indptr: Array,
    table: Array,
    slot_rank: Array,
    node: Array,
    position: Array,
    landing: Array,
    slot_tokens: Array,
    pairs: Array,
    rank_copies: Array,
    node_copies: Array,
    forward: Array,
) -> None:
    """Count one layer under a table policy.

    Parameters
    ----------
    routes
        int16 [tokens, picks], grouped by home rank; negative entries are no picks.
    indptr
        int64 [ranks + 1]: where the tokens of each home rank stand.
    table
        int32 [ranks, experts]: physical slot that each home rank uses for each expert.
    slot_rank
        int32 [ranks * slots]: rank of a physical slot.
    node, position, landing
        int32 [ranks], [ranks], [ranks, nodes]: node of a rank, its position there, where its traffic to a node lands.
    slot_tokens, pairs, rank_copies, node_copies, forward
        float64 outputs [ranks * slots], [ranks, ranks], [ranks, ranks], [ranks, nodes], [ranks, largest node].
    """
    ranks, experts = table.shape
    picks = routes.shape[1]
    expert_rank = np.empty(experts, np.uintp)
    expert_node = np.empty(experts, np.uintp)
    per_expert = np.empty(experts, np.int64)
    by_rank = np.zeros(ranks, np.int64)
    by_node = np.empty(landing.shape[1], np.int64)
    rank_seen = np.full(ranks, -1, np.int64)
    node_seen = np.full(landing.shape[1], -1, np.int64)
    slot_tokens[:] = 0.0
    pairs[:] = 0.0
    rank_copies[:] = 0.0
    forward[:] = 0.0
    for home in range(ranks):
        per_expert[:] = 0
        by_node[:] = 0
        for expert in range(experts):
            expert_rank[expert] = slot_rank[table[home, expert]]
            expert_node[expert] = node[expert_rank[expert]]
        for token in range(indptr[home], indptr[home + 1]):
            for pick in range(picks):
                if routes[token, pick] < 0:
                    continue
                picked = np.uintp(routes[token, pick])
                target = expert_rank[picked]
                place = expert_node[picked]
                per_expert[picked] += 1
                by_rank[target] += rank_seen[target] != token
                by_node[place] += node_seen[place] != token
                rank_seen[target] = token
                node_seen[place] = token
        if slot_tokens.size:
            for expert in range(experts):
                slot_tokens[table[home, expert]] += per_expert[expert]
        if pairs.size:
            for expert in range(experts):
                pairs[home, expert_rank[expert]] += per_expert[expert]
        if ranks <= experts:
            _store_row(home, by_rank, node, position, landing, rank_copies, forward)
        else:
            for expert in range(experts):
                target = expert_rank[expert]
                if by_rank[target] != 0:
                    _store(home, target, by_rank[target], node, position, landing, rank_copies, forward)
                    by_rank[target] = 0
        if node_copies.size:
            write_row(node_copies, home, by_node)


@compiled
def flow_slots(
    slots: Array,
    indptr: Array,
    slot_rank: Array,
    node: Array,
    position: Array,
    landing: Array,
    slot_tokens: Array,
    pairs: Array,
    rank_copies: Array,
    node_copies: Array,
    forward: Array,
) -> None:
    """Count one layer where every pick already has its physical slot: ``slots`` int32 [tokens, picks], negative = none.

    The other parameters are those of :func:`flow_table`.
    """
    ranks = len(node)
    picks = slots.shape[1]
    target_of = slot_rank.astype(np.uintp)
    node_of = node[slot_rank].astype(np.uintp)
    per_slot = np.zeros(len(slot_rank), np.int64)
    per_rank = np.zeros(ranks, np.int64)
    by_rank = np.zeros(ranks, np.int64)
    by_node = np.empty(landing.shape[1], np.int64)
    rank_seen = np.full(ranks, -1, np.int64)
    node_seen = np.full(landing.shape[1], -1, np.int64)
    pairs[:] = 0.0
    rank_copies[:] = 0.0
    forward[:] = 0.0
    for home in range(ranks):
        first, last = indptr[home], indptr[home + 1]
        by_node[:] = 0
        for token in range(first, last):
            for pick in range(picks):
                if slots[token, pick] < 0:
                    continue
                picked = np.uintp(slots[token, pick])
                target = target_of[picked]
                place = node_of[picked]
                per_slot[picked] += 1
                per_rank[target] += 1
                by_rank[target] += rank_seen[target] != token
                by_node[place] += node_seen[place] != token
                rank_seen[target] = token
                node_seen[place] = token
        if ranks <= (last - first) * picks:
            if pairs.size:
                write_row(pairs, home, per_rank)
            _store_row(home, by_rank, node, position, landing, rank_copies, forward)
            per_rank[:] = 0
        else:
            for token in range(first, last):
                for pick in range(picks):
                    if slots[token, pick] < 0:
                        continue
                    target = target_of[np.uintp(slots[token, pick])]
                    if by_rank[target] != 0:
                        if pairs.size:
                            pairs[home, target] = per_rank[target]
                        _store(home, target, by_rank[target], node, position, landing, rank_copies, forward)
                        per_rank[target] = 0
                        by_rank[target] = 0
        if node_copies.size:
            write_row(node_copies, home, by_node)
    if slot_tokens.size:
        for index in range(len(per_slot)):
            slot_tokens[index] = per_slot[index]


@compiled
def flow_shares(
    routes: Array,
    indptr: Array,
    holder_ptr: Array,
    holder_slot: Array,
    share: Array,
    source: Array,
    slot_rank: Array,
    node: Array,
    position: Array,
    landing: Array,
    slot_tokens: Array,
    pairs: Array,
    rank_copies: Array,
    node_copies: Array,
    forward: Array,
) -> None:
    """Expect one layer where every (token, expert) draws a replica on its own, by given shares.

    A token reaches a rank unless all its picks miss it, so a copy is expected ``1 - prod(1 - share on the rank)``
    times; the same holds per node.

    Parameters
    ----------
    holder_ptr, holder_slot
        int64 [experts + 1] and int32 [holders]: physical slots of each expert, ascending.
    share
        float64 [sources, holders]: probability of each holder; adds up to 1 per expert.
    source
        int64 [ranks]: row of ``share`` that a home rank uses.
    """
    ranks = len(node)
    experts = len(holder_ptr) - 1
    picks = routes.shape[1]
    # nodes of each expert: its holders share an entry where they share the node
    entry = np.empty(len(holder_slot), np.int64)
    entry_node = np.empty(len(holder_slot), np.int64)
    entry_ptr = np.zeros(experts + 1, np.int64)
    for expert in range(experts):
        last = entry_ptr[expert]
        for holder in range(holder_ptr[expert], holder_ptr[expert + 1]):
            place = node[slot_rank[holder_slot[holder]]]
            at = entry_ptr[expert]
            while at < last and entry_node[at] != place:
                at += 1
            entry[holder] = at
            entry_node[at] = place
            last = max(last, at + 1)
        entry_ptr[expert + 1] = last
    entry_share = np.zeros(len(holder_slot))

    per_expert = np.empty(experts, np.int64)
    by_rank = np.zeros(ranks)
    by_node = np.empty(landing.shape[1])
    rank_missed = np.empty(ranks)
    node_missed = np.empty(landing.shape[1])
    rank_seen = np.full(ranks, -1, np.int64)
    node_seen = np.full(landing.shape[1], -1, np.int64)
    ranks_met = np.empty(ranks, np.int64)
    nodes_met = np.empty(landing.shape[1], np.int64)
    slot_tokens[:] = 0.0
    pairs[:] = 0.0
    rank_copies[:] = 0.0
    forward[:] = 0.0
    for home in range(ranks):
        per_expert[:] = 0
        by_node[:] = 0.0
        chance = share[source[home]]
        entry_share[:] = 0.0
        for holder in range(len(holder_slot)):
            entry_share[entry[holder]] += chance[holder]
        for token in range(indptr[home], indptr[home + 1]):
            ranks_reached = 0
            nodes_reached = 0
            for pick in range(picks):
                if routes[token, pick] < 0:
                    continue
                picked = np.uintp(routes[token, pick])
                per_expert[picked] += 1
                for holder in range(holder_ptr[picked], holder_ptr[picked + 1]):
                    target = slot_rank[holder_slot[holder]]
                    if rank_seen[target] != token:
                        rank_seen[target] = token
                        rank_missed[target] = 1.0
                        ranks_met[ranks_reached] = target
                        ranks_reached += 1
                    rank_missed[target] *= 1.0 - chance[holder]
                for at in range(entry_ptr[picked], entry_ptr[picked + 1]):
                    place = entry_node[at]
                    if node_seen[place] != token:
                        node_seen[place] = token
                        node_missed[place] = 1.0
                        nodes_met[nodes_reached] = place
                        nodes_reached += 1
                    # shares of a node may add up to a rounding error more than 1
                    node_missed[place] *= max(0.0, 1.0 - entry_share[at])
            for index in range(ranks_reached):
                by_rank[ranks_met[index]] += 1.0 - rank_missed[ranks_met[index]]
            for index in range(nodes_reached):
                by_node[nodes_met[index]] += 1.0 - node_missed[nodes_met[index]]
        for expert in range(experts):
            for holder in range(holder_ptr[expert], holder_ptr[expert + 1]):
                expected = per_expert[expert] * chance[holder]
                rank = slot_rank[holder_slot[holder]]
                if slot_tokens.size:
                    slot_tokens[holder_slot[holder]] += expected
                if pairs.size:
                    pairs[home, rank] += expected
                if by_rank[rank] != 0.0:
                    _store(home, rank, by_rank[rank], node, position, landing, rank_copies, forward)
                    by_rank[rank] = 0.0
        if node_copies.size:
            write_row(node_copies, home, by_node)
