"""The max-plus step of an exchange: when each rank has its last inbound byte, given when each rank began."""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.cluster.kernels import compiled


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
        for rank in range(R):
            if sends[sender, rank >> 3] >> (7 - (rank & 7)) & 1:
                total[rank] += max(own[sender] - word, 0.0)
    for sender in np.argsort(start, kind="mergesort"):
        begin, alone = start[sender], own[sender]
        for rank in range(R):
            if sends[sender, rank >> 3] >> (7 - (rank & 7)) & 1:
                rest = rest_s(before[rank], total[rank], arrive[rank], word)
                end[rank] = max(end[rank], begin + min(alone, arrive[rank]), begin + rest)
                before[rank] += max(alone - word, 0.0)


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
    return word + (1.0 - before / total) * (arrive - word)


@compiled
def held_up(start: Array, arrive: float, own: Array, word: float, sends: Array, rank: int, done: float) -> int:
    """Return the sender from whose beginning on the network drained what was left for ``rank`` until ``done``, or -1.

    It is the one that sets the end in :func:`exchange_end`, which takes the same arguments for all ranks.
    """
    total = before = 0.0
    for sender in range(len(start)):
        if sends[sender, rank >> 3] >> (7 - (rank & 7)) & 1:
            total += max(own[sender] - word, 0.0)
    for sender in np.argsort(start, kind="mergesort"):
        if sends[sender, rank >> 3] >> (7 - (rank & 7)) & 1:
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
