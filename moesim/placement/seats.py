"""Which slot of its rank an expert takes, so that copies that stay are not moved within the rank."""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.placement.placement import EMPTY


def seats(held: Array, before: Array, usable: Array, last: Array) -> Array:
    """Return slots for who holds what: copies that stay keep theirs, others take free ones, experts ascending.

    Parameters
    ----------
    held
        Who is to hold what, bool [layers, experts, ranks]; on no rank more experts than it has usable slots.
    before
        Slots so far, int [layers, ranks, slots], -1 where empty.
    usable
        Slots that can be taken, bool, broadcast to the same shape.
    last
        Slots that are taken only when all other free ones are, bool of the same shape.

    Returns
    -------
    int32 [layers, ranks, slots], -1 where empty.

    Raises
    ------
    ValueError
        If a rank is to hold more than it has slots for.
    """
    layers, ranks, _ = before.shape
    layer, rank = np.ogrid[:layers, :ranks]
    stays = usable & (before != EMPTY) & held[layer[..., None], before, rank[..., None]]
    out = np.where(stays, before, EMPTY).astype(np.int32)
    comes = held.transpose(0, 2, 1).copy()
    of_layer, of_rank, slot = np.nonzero(stays)
    comes[of_layer, of_rank, before[of_layer, of_rank, slot]] = False
    of_layer, of_rank, expert = np.nonzero(comes)
    cell = of_layer * ranks + of_rank
    nth = np.arange(len(cell)) - np.searchsorted(cell, cell)
    free = usable & ~stays
    if (nth >= free.sum(axis=2)[of_layer, of_rank]).any():
        raise ValueError("a rank is to hold more experts than it has slots for")
    order = np.argsort(np.where(free, last, 2), axis=2, kind="stable")
    out[of_layer, of_rank, order[of_layer, of_rank, nth]] = expert
    return out
