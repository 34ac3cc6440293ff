"""The max-plus step of an exchange: when each rank has its last inbound byte, given when each rank began."""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled


@compiled
def exchange_end(
    start: Array, arrive: Array, own: Array, word: float, everyone: bool, sends: Array, end: Array
) -> None:
    """Write when each rank's exchange ends to ``end [R]``.

    A rank waits for the network (its bytes drain from the moment the first rank begins), for every rank that sends
    to it (which, once it begins, needs what its bytes take alone, and no more than the loaded network
    takes, and before which the network cannot have drained what it and later ones send), for a word of everyone where
    the transport has it so, and for itself. ``moesim.costs.received`` says the same.

    Parameters
    ----------
    start
        Clocks at the beginning ``[R]``.
    arrive, own, word, everyone, sends
        One exchange of a :class:`~moesim.simulate.work.Work`: ``[R]`` twice, seconds, flag, ``[R, R / 8]`` bits.
    """
    R = len(start)
    first, last = start.min(), start.max()
    for rank in range(R):
        end[rank] = max(start[rank], first + arrive[rank])
        if everyone:
            end[rank] = max(end[rank], last + min(word, arrive[rank]))
    if first == last:
        return
    total, before = np.zeros(R), np.zeros(R)
    for sender in range(R):
        weight, row = max(own[sender] - word, 0.0), sends[sender]
        if _to_all(row, sender, R):
            kept = total[sender]
            for rank in range(R):
                total[rank] += weight
            if not _bit(row, sender):
                total[sender] = kept
        else:
            for rank in range(R):
                if _bit(row, rank):
                    total[rank] += weight
    # what each second of senders' own bytes that is still to come takes, and what comes before it
    factor, base = np.zeros(R), np.zeros(R)
    for rank in range(R):
        if total[rank] > 0.0 and arrive[rank] > word:
            factor[rank], base[rank] = (arrive[rank] - word) / total[rank], word
    for sender in np.argsort(start, kind="mergesort"):
        at, alone, row = start[sender], own[sender], sends[sender]
        weight = max(alone - word, 0.0)
        if _to_all(row, sender, R):
            # no test inside the loop, so that several ranks are done at once
            kept, kept_end = before[sender], end[sender]
            for rank in range(R):
                rest = base[rank] + (total[rank] - before[rank]) * factor[rank]
                end[rank] = max(end[rank], at + max(min(alone, arrive[rank]), rest))
                before[rank] += weight
            if not _bit(row, sender):
                before[sender], end[sender] = kept, kept_end
        else:
            for rank in range(R):
                if _bit(row, rank):
                    rest = base[rank] + (total[rank] - before[rank]) * factor[rank]
                    end[rank] = max(end[rank], at + max(min(alone, arrive[rank]), rest))
                    before[rank] += weight


@compiled
def _bit(row: Array, rank: int) -> bool:
    return bool(row[rank >> 3] >> (7 - (rank & 7)) & 1)


@compiled
def _to_all(row: Array, sender: int, R: int) -> bool:
    """Return whether a row of bits is set for all ranks, the sender itself aside."""
    for part in range(len(row)):
        left = R - 8 * part
        wanted = 255 if left >= 8 else (255 << (8 - left)) & 255
        own = 128 >> (sender & 7) if part == sender >> 3 else 0
        if row[part] | own != wanted:
            return False
    return True


@compiled
def rest_s(before: float, total: float, arrive: float, word: float) -> float:
    """Return the seconds from the beginning of a sender until a rank has what it and later senders have for it.

    Parameters
    ----------
    before, total
        Seconds that the own bytes need of senders that began earlier, and of all senders.
    arrive
        Seconds until the rank has everything where all begin together.
    word
        Seconds until an empty message is there.
    """
    if total <= 0.0 or arrive <= word:
        return 0.0
    return word + (total - before) * ((arrive - word) / total)


@compiled
def held_up(start: Array, arrive: float, own: Array, word: float, sends: Array, rank: int, done: float) -> int:
    """Return the sender from whose beginning on the network drained what was left for ``rank`` until ``done``, or -1.

    It is the one that sets the end in :func:`exchange_end`, which takes the same arguments for all ranks.
    """
    total = before = 0.0
    for sender in range(len(start)):
        if _bit(sends[sender], rank):
            total += max(own[sender] - word, 0.0)
    for sender in np.argsort(start, kind="mergesort"):
        if _bit(sends[sender], rank):
            if start[sender] + rest_s(before, total, arrive, word) == done:
                return int(sender)
            before += max(own[sender] - word, 0.0)
    return -1


@compiled
def slowed(start: Array, end: Array, begun: Array, over: Array, share: float) -> None:
    """Delay ``end [R]`` of work that began at ``start`` and runs slower by ``share`` from ``begun`` to ``over``."""
    for rank in range(len(start)):
        both = max(start[rank], begun[rank])
        work, window = end[rank] - both, over[rank] - both
        if work > 0.0 and window > 0.0:
            end[rank] += share * min(work / (1.0 - share), window)
