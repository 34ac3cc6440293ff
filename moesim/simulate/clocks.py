"""The max-plus step of an exchange: when each rank has its last inbound byte, given when each rank began."""

from __future__ import annotations

from moesim.base.arrays import Array
from moesim.cluster.kernels import compiled


@compiled
def exchange_end(
    start: Array, arrive: Array, own: Array, word: float, everyone: bool, sends: Array, end: Array
) -> None:
    """Write when each rank's exchange ends to ``end [R]``.

    A rank waits for the network (its bytes drain from the moment the first rank begins), for every rank that sends
    to it (which, once it begins, needs what its bytes take alone, and no more than the loaded network
    takes), for a word of everyone where the transport has it so, and for itself.
    ``moesim.costs.received`` says the same.

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
    for sender in range(R):
        begin, alone = start[sender], own[sender]
        for rank in range(R):
            if sends[sender, rank >> 3] >> (7 - (rank & 7)) & 1:
                end[rank] = max(end[rank], begin + min(alone, arrive[rank]))


@compiled
def slowed(start: Array, end: Array, begun: Array, over: Array, share: float) -> None:
    """Delay ``end [R]`` of work that began at ``start`` and runs slower by ``share`` from ``begun`` to ``over``."""
    for rank in range(len(start)):
        both = max(start[rank], begun[rank])
        work, window = end[rank] - both, over[rank] - both
        if work > 0.0 and window > 0.0:
            end[rank] += share * min(work / (1.0 - share), window)
