"""From a running placement to another: which rank must receive which expert, and from whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.placement.placement import Placement


@dataclass(frozen=True, eq=False)
class Migration(Sealed):
    """Experts to copy between ranks. Moving an expert between slots of one rank is free and is not listed.

    Parameters
    ----------
    layer, expert
        int32 [moves]: what is copied.
    source, target
        int32 [moves]: a rank that holds it before, and the rank that receives it.
    layers, ranks
        Sizes of the placements.
    """

    layer: Array
    expert: Array
    source: Array
    target: Array
    layers: int
    ranks: int

    def __post_init__(self) -> None:
        moves = {"moves": len(np.asarray(self.layer))}
        for name in ("layer", "expert", "source", "target"):
            seal(self, name, getattr(self, name), np.int32, ("moves",), moves)

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def per_layer(self) -> Array:
        """int64 [layers]: copies to make in each layer."""
        return np.bincount(self.layer, minlength=self.layers)

    @property
    def received(self) -> Array:
        """int64 [layers, ranks]: experts that each rank receives."""
        return self._by_rank(self.target)

    @property
    def sent(self) -> Array:
        """int64 [layers, ranks]: experts that each rank sends."""
        return self._by_rank(self.source)

    def bytes(self, expert_bytes: float) -> float:
        """Return the bytes copied, for experts of this size (``ModelSpec.expert_bytes``)."""
        return len(self) * expert_bytes

    def between_nodes(self, node: ArrayLike) -> int:
        """Return how many copies leave their node; ``node`` int32 [ranks]."""
        of = np.asarray(node)
        return int(np.count_nonzero(of[self.source] != of[self.target]))

    def _by_rank(self, rank: Array) -> Array:
        cell = self.layer.astype(np.int64) * self.ranks + rank
        return np.bincount(cell, minlength=self.layers * self.ranks).reshape(self.layers, self.ranks)


def migration(running: Placement, planned: Placement, node: ArrayLike | None = None) -> Migration:
    """Return the copies that turn one placement into another, ranks keeping their numbers.

    Each copy comes from a rank of the receiver's node where one holds the expert, and among equally near ones from
    the rank that sends the least so far in this layer.

    Parameters
    ----------
    node
        int32 [ranks]: node of each rank; None takes all ranks as one node.

    Raises
    ------
    InputError
        If the placements differ in layers, ranks or experts.
    """
    old, new = running, planned
    if (old.layers, old.ranks, old.num_experts) != (new.layers, new.ranks, new.num_experts):
        raise InputError(
            "migration: the running placement has (layers, ranks, experts) "
            f"{(old.layers, old.ranks, old.num_experts)}, the planned one {(new.layers, new.ranks, new.num_experts)}; "
            "plan for what is running"
        )
    of = np.zeros(old.ranks, dtype=np.int32) if node is None else np.asarray(node)
    if of.shape != (old.ranks,):
        raise InputError(f"migration: expected the node of each of {count(old.ranks, 'rank')}, got shape {of.shape}")
    layer, expert, target = np.nonzero(new.has & ~old.has)
    sent = np.zeros((old.layers, old.ranks), dtype=np.int64)
    source = np.empty(len(layer), dtype=np.int32)
    for move in range(len(layer)):
        holders = np.flatnonzero(old.has[layer[move], expert[move]])
        near = holders[of[holders] == of[target[move]]]
        nearest = near if len(near) else holders
        source[move] = nearest[sent[layer[move], nearest].argmin()]
        sent[layer[move], source[move]] += 1
    return Migration(layer, expert, source, target, old.layers, old.ranks)
