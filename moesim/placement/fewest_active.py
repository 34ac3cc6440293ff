"""The ``fewest-active`` policy: every expert of a batch is served by one copy, so that few are active on any rank.

In decode a rank's experts take the time of reading their weights, whatever the tokens, so copies that all work double
that time for nothing (METRO, arXiv 2512.09277). What must be known is which experts the batch picks, and how often:
an all-gather of the picks, as METRO's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled


def fewest_active(routes: Array, indptr: Array, rank: Array, slot: Array, ranks: int) -> Array:
    """Return int32 [tokens, picks]: the physical slot of every pick, -1 where there is none.

    The most active experts of a rank are as few as any choice of one copy an expert allows. Among such choices loads
    are evened out as far as single exchanges go.

    Parameters
    ----------
    routes, indptr, rank, slot
        As in :class:`moesim.placement.policies.LayerBatch`.
    ranks
        Number of ranks, R.
    """
    counts = np.bincount(routes[routes >= 0].astype(np.int64), minlength=len(indptr) - 1)
    chosen = one_copy_each(counts, np.asarray(indptr), np.asarray(rank), ranks)
    served = np.where(chosen >= 0, np.asarray(slot)[np.maximum(chosen, 0)], -1)
    return np.where(routes < 0, -1, served[np.maximum(routes, 0)]).astype(np.int32)


@compiled
def one_copy_each(counts: Any, indptr: Any, rank: Any, ranks: int) -> Any:
    """Return int64 [experts]: the holder that serves each expert with a count, -1 for the others.

    Experts with few copies choose first, the rank with the fewest active experts, then the least load. Then chains of
    exchanges (a breadth-first search from the fullest rank) are followed until none lowers it: that is optimal
    (semi-matching, Harvey, Ladner, Lovasz and Tamir 2006).
    """
    experts = len(counts)
    chosen = np.full(experts, -1, np.int64)
    active, load = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    copies = indptr[1:] - indptr[:-1]
    # few copies first, then many tokens
    order = np.argsort(copies * (counts.max() + 1) - counts)
    for expert in order:
        if counts[expert] == 0:
            continue
        best = indptr[expert]
        for holder in range(indptr[expert], indptr[expert + 1]):
            here, there = rank[holder], rank[best]
            if active[here] < active[there] or (active[here] == active[there] and load[here] < load[there]):
                best = holder
        chosen[expert] = best
        active[rank[best]] += 1
        load[rank[best]] += counts[expert]
    before, through = np.empty(ranks, np.int64), np.empty(ranks, np.int64)
    queue = np.empty(ranks, np.int64)
    while True:
        moved = False
        most = active.max()
        for full in range(ranks):
            if active[full] < most:
                continue
            # who could take an expert from whom, from the fullest rank on
            before[:] = -1
            before[full] = full
            queue[0] = full
            head, tail, goal = 0, 1, -1
            while head < tail and goal < 0:
                here = queue[head]
                head += 1
                for expert in range(experts):
                    if chosen[expert] < 0 or rank[chosen[expert]] != here:
                        continue
                    for holder in range(indptr[expert], indptr[expert + 1]):
                        there = rank[holder]
                        if before[there] >= 0:
                            continue
                        before[there], through[there] = here, holder
                        queue[tail] = there
                        tail += 1
                        if active[there] <= most - 2 and goal < 0:
                            goal = there
            if goal < 0:
                continue
            active[goal] += 1
            active[full] -= 1
            while goal != full:
                holder = through[goal]
                expert = np.searchsorted(indptr, holder, side="right") - 1
                load[goal] += counts[expert]
                load[before[goal]] -= counts[expert]
                chosen[expert] = holder
                goal = before[goal]
            moved = True
            break
        if not moved:
            break
    _even_out(counts, indptr, rank, active, load, chosen)
    return chosen


@compiled
def _even_out(counts: Any, indptr: Any, rank: Any, active: Any, load: Any, chosen: Any) -> None:
    """Hand experts to other copies while that lowers the fuller load of two ranks and no rank gets too active."""
    most = active.max()
    again = True
    while again:
        again = False
        for expert in range(len(counts)):
            if chosen[expert] < 0:
                continue
            here = rank[chosen[expert]]
            for holder in range(indptr[expert], indptr[expert + 1]):
                there = rank[holder]
                if there != here and active[there] < most and load[there] + counts[expert] < load[here]:
                    chosen[expert] = holder
                    active[here] -= 1
                    active[there] += 1
                    load[here] -= counts[expert]
                    load[there] += counts[expert]
                    here = there
                    again = True
