"""The ``token-aware`` policy: the fewest nodes, then the fewest ranks for each token, under a load cap.

What a home rank must know is little: its own tokens, and the load of every rank in the batch as a whole. It first
covers each token greedily, its own node before others; an all-gather of the resulting loads tells all ranks who is
above the cap and who below. Then each home rank moves its part of the excess to its part of the room, tokens that
visit the other node anyway first. That exchange is repeated `ROUNDS` times, under a cap that comes down step by step;
nobody counts along while others choose.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled

SLACK: Final = 1.03
"""Load cap over the mean load of a rank. The tighter, the more traffic it costs."""
ROUNDS: Final = 8
"""Exchanges of loads. In trials on public traces 16 and 32 raised the balance by 0 to 0.04."""

_ENOUGH: Final = 1.01
"""Loads of the fullest rank that are taken to be as good as the least of all rounds."""


def token_aware(
    routes: Array, group_ptr: Array, indptr: Array, rank: Array, slot: Array, node: Array, cap: int | None = None
) -> Array:
    """Return int32 [tokens, picks]: the physical slot of every pick, -1 where there is none.

    Parameters
    ----------
    routes, group_ptr, indptr, rank, slot, node
        As in :class:`moesim.placement.policies.LayerBatch`.
    cap
        Load that a rank should not exceed; :func:`load_cap` by default.
    """
    chosen = np.empty(routes.shape, np.int64)
    covered(routes, group_ptr, indptr, rank, node, chosen)
    if cap is None:
        cap = load_cap(routes, indptr, rank, len(node))
    tried = [(_fullest(chosen, rank, len(node)), chosen.copy())]
    most = max(tried[0][0] - cap, 0)
    for left in range(ROUNDS - 1, -1, -1):
        # the cap comes down step by step, so that a full rank can pass on what an overloaded one hands it
        shed(routes, group_ptr, indptr, rank, node, cap + most * left // ROUNDS, chosen)
        tried.append((_fullest(chosen, rank, len(node)), chosen.copy()))
    # where the fullest rank cannot come down further, moving others' picks costs traffic for nothing
    enough = _ENOUGH * min(load for load, _ in tried)
    chosen = next(found for load, found in tried if load <= enough)
    return np.where(chosen < 0, -1, slot[np.maximum(chosen, 0)]).astype(np.int32)


def _fullest(chosen: Array, rank: Array, ranks: int) -> int:
    """Return the picks of the fullest rank."""
    return int(np.bincount(rank[chosen[chosen >= 0]], minlength=ranks).max(initial=0))


def load_cap(routes: Array, indptr: Array, rank: Array, ranks: int) -> int:
    """Return the picks a rank may compute: `SLACK` over the mean, or what no choice can take off some rank."""
    counts = np.bincount(routes[routes >= 0], minlength=len(indptr) - 1)
    alone = np.flatnonzero(np.diff(indptr) == 1)
    forced = np.bincount(rank[indptr[alone]], weights=counts[alone], minlength=ranks)
    return int(np.ceil(max(SLACK * counts.sum() / ranks, forced.max(initial=0.0))))


@compiled
def _cover(
    picked: Any, indptr: Any, place: Any, open_to: Any, stamp: int, turn: int, chosen: Any, scratch: Any
) -> None:
    """Mark in ``chosen`` the places that a token visits: those without choice, then greedily.

    ``place`` [holders] is the node or rank of every holder; holders count only where ``open_to`` [holders] is the
    stamp, or everywhere if it is empty. Of places that cover equally many picks the first after ``turn`` is taken.
    """
    count, last = scratch
    places = len(chosen)
    for expert in picked:
        if expert < 0:
            continue
        only = -1
        for holder in range(indptr[expert], indptr[expert + 1]):
            if open_to.size and open_to[holder] != stamp:
                continue
            only = place[holder] if only == -1 or only == place[holder] else -2
        if only >= 0:
            chosen[only] = stamp
    while True:
        best, most, nearest = -1, 0, 0
        for again in range(2):
            for pick in range(len(picked)):
                expert = picked[pick]
                if expert < 0:
                    continue
                done = False
                for holder in range(indptr[expert], indptr[expert + 1]):
                    is_open = open_to.size == 0 or open_to[holder] == stamp
                    done |= is_open and chosen[place[holder]] == stamp
                if done:
                    continue
                for holder in range(indptr[expert], indptr[expert + 1]):
                    if open_to.size and open_to[holder] != stamp:
                        continue
                    here = place[holder]
                    if again:
                        count[here], last[here] = 0, -1
                    elif last[here] != pick:
                        last[here] = pick
                        count[here] += 1
                        away = (here - turn) % places
                        if count[here] > most or (count[here] == most and away < nearest):
                            best, most, nearest = here, count[here], away
        if best < 0:
            break
        chosen[best] = stamp


@compiled
def covered(routes: Any, group_ptr: Any, indptr: Any, rank: Any, node: Any, out: Any) -> None:
    """Fill ``out`` int64 [tokens, picks] with the holder of every pick: fewest nodes, then fewest ranks, no cap."""
    ranks, nodes, holders = len(node), node.max() + 1, len(rank)
    holder_node = np.empty(holders, np.int64)
    for holder in range(holders):
        holder_node[holder] = node[rank[holder]]
    nobody = np.empty(0, np.int64)
    open_to = np.full(holders, -1, np.int64)
    on_node, on_rank = np.full(nodes, -1, np.int64), np.full(ranks, -1, np.int64)
    node_scratch, rank_scratch = np.zeros((2, nodes), np.int64), np.zeros((2, ranks), np.int64)
    node_scratch[1], rank_scratch[1] = -1, -1
    for home in range(ranks):
        for token in range(group_ptr[home], group_ptr[home + 1]):
            picked = routes[token]
            on_node[node[home]] = token
            _cover(picked, indptr, holder_node, nobody, token, token % nodes, on_node, node_scratch)
            for expert in picked:
                if expert >= 0:
                    near = False
                    for holder in range(indptr[expert], indptr[expert + 1]):
                        near |= holder_node[holder] == node[home]
                    for holder in range(indptr[expert], indptr[expert + 1]):
                        # what the own node holds does not leave it
                        stays = holder_node[holder] == node[home] if near else on_node[holder_node[holder]] == token
                        open_to[holder] = token if stays else -1
            on_rank[home] = token
            _cover(picked, indptr, rank, open_to, token, token % ranks, on_rank, rank_scratch)
            for pick in range(len(picked)):
                out[token, pick] = -1
                if picked[pick] < 0:
                    continue
                for holder in range(indptr[picked[pick]], indptr[picked[pick] + 1]):
                    serves = open_to[holder] == token and on_rank[rank[holder]] == token
                    if serves and (out[token, pick] < 0 or rank[holder] == home):
                        out[token, pick] = holder


@compiled
def _part(amount: int, before: int, own: int, total: int) -> int:
    """Return one claimant's whole part of ``amount``; the parts of all add up to it."""
    return amount * (before + own) // total - amount * before // total if total else 0


@compiled
def _claims(picked: Any, chosen: Any, indptr: Any, rank: Any, room: Any, leaving: Any, coming: Any) -> None:
    for pick in range(len(picked)):
        if picked[pick] < 0 or room[rank[chosen[pick]]] >= 0:
            continue
        able = False
        for holder in range(indptr[picked[pick]], indptr[picked[pick] + 1]):
            if room[rank[holder]] > 0:
                able = True
                coming[rank[holder]] += 1
        leaving[rank[chosen[pick]]] += able


@compiled
def _leaves_a_node(picked: Any, chosen: Any, rank: Any, node: Any, pick: int, own: int) -> bool:
    """Return whether a token visits a node other than its own for this pick alone."""
    there = node[rank[chosen[pick]]]
    for other in range(len(picked)):
        if other != pick and picked[other] >= 0 and node[rank[chosen[other]]] == there:
            return False
    return bool(there != own)


@compiled
def shed(routes: Any, group_ptr: Any, indptr: Any, rank: Any, node: Any, cap: int, chosen: Any) -> int:
    """Move picks from ranks above the cap to ranks below it, in place; return how many were moved.

    Every home rank moves its part only, so no rank that was below the cap rises above it.
    """
    ranks = len(node)
    room = np.full(ranks, cap, np.int64)
    for token in range(len(routes)):
        for pick in range(routes.shape[1]):
            if routes[token, pick] >= 0:
                room[rank[chosen[token, pick]]] -= 1
    leaving, coming = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    for token in range(len(routes)):
        _claims(routes[token], chosen[token], indptr, rank, room, leaving, coming)
    left, came = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    mine, theirs = np.empty(ranks, np.int64), np.empty(ranks, np.int64)
    excess, place = np.empty(ranks, np.int64), np.empty(ranks, np.int64)
    moved = 0
    for home in range(ranks):
        mine[:], theirs[:] = 0, 0
        for token in range(group_ptr[home], group_ptr[home + 1]):
            _claims(routes[token], chosen[token], indptr, rank, room, mine, theirs)
        for other in range(ranks):
            excess[other] = _part(max(-room[other], 0), left[other], mine[other], leaving[other])
            place[other] = _part(max(room[other], 0), came[other], theirs[other], coming[other])
        left += mine
        came += theirs
        # first to ranks that the token visits, then to nodes that it visits, then where it leaves a node for another
        for effort in range(4):
            for token in range(group_ptr[home], group_ptr[home + 1]):
                for pick in range(routes.shape[1]):
                    expert = routes[token, pick]
                    if expert < 0 or excess[rank[chosen[token, pick]]] <= 0:
                        continue
                    if effort == 2 and not _leaves_a_node(routes[token], chosen[token], rank, node, pick, node[home]):
                        continue
                    for holder in range(indptr[expert], indptr[expert + 1]):
                        target = rank[holder]
                        if place[target] <= 0:
                            continue
                        known = effort >= 2 or (effort == 1 and node[target] == node[home])
                        for other in range(routes.shape[1]):
                            if routes[token, other] >= 0:
                                visited = rank[chosen[token, other]]
                                known |= visited == target or (effort == 1 and node[visited] == node[target])
                        if known:
                            excess[rank[chosen[token, pick]]] -= 1
                            place[target] -= 1
                            chosen[token, pick] = holder
                            moved += 1
                            break
    return moved
