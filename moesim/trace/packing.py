"""Packing of requests into full steps: chunks for prefill and training, one token a request for decode.

Requests are given by their lengths, in the order in which they are served; rows of the trace do not occur here.
"""

from __future__ import annotations

import heapq

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled


def chunks(
    lengths: Array, ranks: int, size: int, least_loaded: bool, most_steps: int
) -> tuple[Array, Array, Array, int]:
    """Pack requests into steps in which every rank holds exactly ``size`` tokens, in chunks.

    A rank first goes on with the request it has begun; ranks with room left then take the next waiting request,
    in turn or the emptiest rank first. A step that cannot be filled ends the packing.

    Parameters
    ----------
    lengths
        Tokens of each request, int64 [requests], at least 1.

    Returns
    -------
    place, home, step
        Index into the concatenated tokens of all requests, rank and step of each packed token, int64 [packed], in
        the order step, rank, request.
    steps
        Number of full steps.
    """
    request, first, count, home, step, steps = _chunks(lengths, ranks, size, least_loaded, most_steps)
    begin = np.cumsum(lengths) - lengths
    order = np.lexsort((np.arange(len(step)), home, step))
    order = order[step[order] < steps]
    count = count[order]
    start = begin[request[order]] + first[order]
    return ragged_range(start, count), np.repeat(home[order], count), np.repeat(step[order], count), steps


@compiled
def _chunks(
    lengths: Array, ranks: int, size: int, least_loaded: bool, most_steps: int
) -> tuple[Array, Array, Array, Array, Array, int]:
    most = len(lengths) + ranks * (lengths.sum() // (ranks * size) + 2)
    out = np.empty((5, most), np.int64)  # request, first token, tokens, rank, step
    begun = np.full(ranks, -1, np.int64)
    done = np.zeros(ranks, np.int64)
    room = np.empty(ranks, np.int64)
    used, waiting, turn, step = 0, 0, 0, 0
    while step < most_steps:
        room[:] = size
        free = ranks * size
        for r in range(ranks):
            if begun[r] >= 0:
                take = min(size, lengths[begun[r]] - done[r])
                out[0, used], out[1, used], out[2, used], out[3, used], out[4, used] = begun[r], done[r], take, r, step
                used += 1
                done[r] += take
                room[r] -= take
                free -= take
                if done[r] == lengths[begun[r]]:
                    begun[r] = -1
        while free > 0 and waiting < len(lengths):
            r = int(np.argmax(room)) if least_loaded else turn
            while room[r] == 0:
                r = (r + 1) % ranks
            turn = (r + 1) % ranks
            take = min(room[r], lengths[waiting])
            out[0, used], out[1, used], out[2, used], out[3, used], out[4, used] = waiting, 0, take, r, step
            used += 1
            room[r] -= take
            free -= take
            if take < lengths[waiting]:
                begun[r], done[r] = waiting, take
            waiting += 1
        if free > 0:
            break
        step += 1
    return out[0, :used], out[1, :used], out[2, :used], out[3, :used], out[4, :used], step


def live(lengths: Array, ranks: int, size: int, most_steps: int) -> tuple[Array, Array, Array, int]:
    """Pack requests into steps of one token each, ``ranks * size`` requests running at a time.

    A request stays on its rank until its last token; the next waiting one takes its place. The first step in
    which a place stays empty ends the packing.

    Returns
    -------
    place, home, step
        As for :func:`chunks`.
    steps
        Number of full steps; 0 where there are fewer requests than places.
    """
    places = ranks * size
    if len(lengths) < places:
        none = np.zeros(0, np.int64)
        return none, none, none, 0
    start = np.zeros(len(lengths), np.int64)
    slot = np.arange(len(lengths))
    ends = [(int(lengths[i]), i) for i in range(places)]
    heapq.heapify(ends)
    for i in range(places, len(lengths)):
        free_at, free = ends[0]
        start[i], slot[i] = free_at, free
        heapq.heapreplace(ends, (free_at + int(lengths[i]), free))
    steps = min(ends[0][0], most_steps)
    kept = np.clip(steps - start, 0, lengths)
    begin = np.cumsum(lengths) - lengths
    place, step = ragged_range(begin, kept), ragged_range(start, kept)
    home, slot = np.repeat(slot % ranks, kept), np.repeat(slot, kept)
    order = np.lexsort((slot, home, step))
    return place[order], home[order], step[order], steps


def ragged_range(start: Array, count: Array) -> Array:
    """Return the numbers ``start[i] .. start[i] + count[i] - 1`` of all i, one after the other, int64 [sum]."""
    before = np.cumsum(count) - count
    numbers: Array = np.arange(int(count.sum())) + np.repeat(start - before, count)
    return numbers
