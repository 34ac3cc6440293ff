"""Expert-parallel load balancing (EPLB) as published by DeepSeek, written anew on compiled loops.

Three ideas: *replicate* (give one more copy to the expert with the most load per copy until all slots are used),
*pack* (heaviest item first, to the lightest pack that still has room) and *hierarchy* (pack expert groups to
nodes, replicate inside each node, pack copies to the node's GPUs). Loads are float32, as in the published
program, so that its answers are reproduced exactly. Like it, :func:`rebalance` can put two copies of one expert on
one GPU; the solvers that use it repair that (:mod:`moesim.solve.repair`).

The published program sorts with an unstable sort, whose order of *equal* loads depends on the library and the
processor. Here equal loads keep their order, which is the same everywhere; ``order`` takes another sort.

Published description: README of https://github.com/deepseek-ai/EPLB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.base.compiled import compiled
from moesim.base.errors import InputError
from moesim.base.units import count

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Order = Callable[[Floats], NDArray[np.int64]]
"""A sort: loads [rows, items] to indices [rows, items], heaviest first."""


def heaviest_first(load: Floats) -> NDArray[np.int64]:
    """Return the items of each row from heavy to light; equal ones keep their order."""
    return np.argsort(-load, axis=1, kind="stable")


@compiled
def _replicate(weight: Any, slots: int) -> Any:
    """Return the item of every slot and the copies of every item; ``weight`` is float32 [rows, items]."""
    rows, items = weight.shape
    item = np.empty((rows, slots), np.int32)
    copies = np.ones((rows, items), np.int32)
    for row in range(rows):
        share = weight[row].copy()
        for slot in range(items):
            item[row, slot] = slot
        for slot in range(items, slots):
            best = 0
            for candidate in range(1, items):
                if share[candidate] > share[best]:
                    best = candidate
            item[row, slot] = best
            copies[row, best] += 1
            share[best] = weight[row, best] / np.float32(copies[row, best])
    return item, copies


@compiled
def _pack(weight: Any, order: Any, packs: int) -> Any:
    """Return pack and place in the pack of every item; ``order`` lists items from heavy to light."""
    rows, items = weight.shape
    room = items // packs
    pack_of = np.empty((rows, items), np.int32)
    place_of = np.empty((rows, items), np.int32)
    for row in range(rows):
        load = np.zeros(packs, np.float32)
        held = np.zeros(packs, np.int32)
        for position in range(items):
            item = order[row, position]
            best = -1
            for pack in range(packs):
                if held[pack] < room and (best < 0 or load[pack] < load[best]):
                    best = pack
            pack_of[row, item] = best
            place_of[row, item] = held[best]
            load[best] += weight[row, item]
            held[best] += 1
    return pack_of, place_of


def balanced_packing(weight: ArrayLike, packs: int, order: Order = heaviest_first) -> tuple[Ints, Ints]:
    """Pack items so that every pack holds equally many and loads are close.

    Parameters
    ----------
    weight
        Load of each item, [rows, items]; ``packs`` divides the number of items.

    Returns
    -------
    pack, place
        Pack of each item and its place inside that pack, int32 [rows, items].

    Raises
    ------
    InputError
        If ``packs`` does not divide the number of items.
    """
    load = np.ascontiguousarray(weight, dtype=np.float32)
    rows, items = load.shape
    if items % packs:
        raise InputError(f"EPLB packing: {packs} packs do not divide {items} items; change the slots per rank")
    if items == packs:
        pack = np.broadcast_to(np.arange(items, dtype=np.int32), (rows, items)).copy()
        return pack, np.zeros((rows, items), np.int32)
    pack, place = _pack(load, order(load), packs)
    return pack, place


def replicate_experts(weight: ArrayLike, slots: int) -> tuple[Ints, Ints]:
    """Give each slot beyond the first copies to the expert with the most load per copy.

    This greedy choice minimises the largest load per copy.

    Returns
    -------
    expert, copies
        Expert of each slot, int32 [rows, slots], and copies of each expert, int32 [rows, experts].
    """
    load = np.ascontiguousarray(weight, dtype=np.float32)
    if slots < load.shape[1]:
        raise InputError(
            f"EPLB replication: {count(slots, 'slot')} cannot hold {count(load.shape[1], 'expert')}; add slots per rank"
        )
    expert, copies = _replicate(load, slots)
    return expert, copies


def rebalance(
    weight: ArrayLike,
    slots: int,
    *,
    groups: int = 1,
    nodes: int = 1,
    ranks: int,
    hierarchical: bool,
    order: Order = heaviest_first,
) -> tuple[Ints, Ints]:
    """Return EPLB's placement of every layer.

    Parameters
    ----------
    weight
        Load of each expert, [layers, experts].
    slots
        Physical experts of all ranks together.
    groups, nodes
        Expert groups and nodes; only the hierarchical form looks at them.
    hierarchical
        Keep each expert group on one node (EPLB's prefill form), or place freely (its decode form).
    order
        The sort that packing uses; it decides between equal loads.

    Returns
    -------
    physical_to_logical
        Expert of each slot, rank by rank, int32 [layers, slots].
    copies
        Copies of each expert, int32 [layers, experts].

    Raises
    ------
    InputError
        If groups, nodes, ranks and slots do not divide as the chosen form needs; the message says what to change.
    """
    load = np.ascontiguousarray(weight, dtype=np.float32)
    experts = load.shape[1]
    if not hierarchical:
        groups = nodes = 1
    if groups == 1 and nodes > 1:
        raise InputError(
            "eplb-hierarchical: the model has no expert groups (or their number is not known) to keep on one node; "
            "use eplb (global)"
        )
    if groups % nodes:
        raise InputError(
            f"eplb-hierarchical: {nodes} nodes do not divide {count(groups, 'expert group')}, so a group cannot stay "
            f"on one node; use eplb (global), or a number of nodes that divides {groups}"
        )
    for whole, part, names in (
        (experts, groups, "groups do not divide {} experts"),
        (ranks, nodes, "nodes do not divide {} ranks"),
        (slots, ranks, "ranks do not divide {} slots"),
    ):
        if whole % part:
            raise InputError(f"EPLB: {part} {names.format(whole)}; choose sizes that divide")
    layers, size = len(load), experts // groups

    # expert groups to nodes; `near` lists a layer's experts node by node
    node, place = balanced_packing(load.reshape(layers, groups, size).sum(axis=2), nodes, order)
    group_at = np.argsort(node * (groups // nodes) + place, axis=1)
    near = (group_at[:, :, None] * size + np.arange(size)).reshape(layers, experts)

    # copies inside each node; from here a row is one node of one layer
    local = np.take_along_axis(load, near, axis=1).reshape(layers * nodes, experts // nodes)
    item, copies = replicate_experts(local, slots // nodes)
    share = np.take_along_axis(local / copies.astype(np.float32), item, axis=1)

    pack, place = balanced_packing(share, ranks // nodes, order)
    slot = np.argsort(pack * (slots // ranks) + place, axis=1)
    placed = np.take_along_axis(item, slot, axis=1).reshape(layers, nodes, slots // nodes)
    placed = placed + (np.arange(nodes, dtype=np.int32) * (experts // nodes))[:, None]
    physical_to_logical = np.take_along_axis(near, placed.reshape(layers, slots), axis=1).astype(np.int32)
    copies_of = np.empty((layers, experts), np.int32)
    np.put_along_axis(copies_of, near, copies.reshape(layers, experts), axis=1)
    return physical_to_logical, copies_of
