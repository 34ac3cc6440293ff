"""Filling empty slots: engines hold an expert in every slot, solvers may leave some empty."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.placement.placement import EMPTY, Placement


def fill_empty(placement: Placement, loads: ArrayLike) -> Placement:
    """Return the placement with every empty slot turned into one more copy of a loaded expert.

    Slot by slot, the expert with the most load per copy that some rank can still take goes to the least loaded such
    rank, never twice to one rank. Ties go to the expert with fewer copies, then to lower numbers.

    Parameters
    ----------
    loads
        [layers, experts]: load of every expert, in any unit, none negative.

    Raises
    ------
    InputError
        If the loads do not fit, or a rank has more slots than there are experts.
    """
    given = np.asarray(loads, dtype=np.float64)
    shape = (placement.layers, placement.num_experts)
    if given.shape != shape:
        raise InputError(f"fill_empty: expected loads {shape} [layers, experts], got shape {given.shape}")
    if not (np.isfinite(given) & (given >= 0)).all():
        raise InputError("fill_empty: expected finite loads that are not negative")
    if placement.slots_per_rank > placement.num_experts:
        raise InputError(
            f"fill_empty: {placement.slots_per_rank} slots a rank are more than there are experts "
            f"({placement.num_experts}), so an expert would be twice on a rank; give fewer slots"
        )
    experts = placement.experts.copy()
    for layer in np.flatnonzero((experts == EMPTY).any(axis=(1, 2))):
        _fill_layer(experts[layer], placement.has[layer].copy(), given[layer])
    return dataclasses.replace(placement, experts=experts)


def _fill_layer(experts: Array, has: Array, load: Array) -> None:
    copies = has.sum(axis=1)
    numbers = np.arange(len(load))
    while (room := (experts == EMPTY).any(axis=1)).any():
        fits = (room & ~has).any(axis=1)
        order = np.lexsort((numbers, copies, -load / copies, ~fits))
        expert = order[0]
        rank_load = (load / copies) @ has
        rank = np.where(room & ~has[expert], rank_load, np.inf).argmin()
        experts[rank, np.argmax(experts[rank] == EMPTY)] = expert
        has[expert, rank] = True
        copies[expert] += 1
