"""Constraints of a problem as arrays: room of every rank, move budget, hot experts; and what is proven impossible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import Infeasible, InputError
from moesim.base.units import count
from moesim.placement import EMPTY, Placement
from moesim.solve.constraints import Constraints
from moesim.solve.rules import Rules


@dataclass(frozen=True, eq=False)
class Limits(Sealed):
    """What every layer of a placement must respect.

    Parameters
    ----------
    room
        Slots that each rank may fill, int64 [layers, ranks].
    slots
        Slots of a rank, C.
    node
        Node of each rank, int32 [ranks].
    was
        Who holds what now, bool [layers, experts, ranks]; all False where nothing runs.
    most
        Experts that all ranks together may receive in a layer, None for any number.
    hot
        Experts that need copies on ``nodes`` nodes, int32 [layers, hot experts].
    nodes, hard, price
        As in :class:`moesim.solve.Constraints`.
    """

    room: Array
    slots: int
    node: Array
    was: Array
    most: int | None
    hot: Array
    nodes: int
    hard: bool
    price: float

    def __post_init__(self) -> None:
        layers, ranks = seal(self, "room", self.room, np.int64, ("layers", "ranks")).shape
        sizes = {"layers": layers, "ranks": ranks}
        seal(self, "node", self.node, np.int32, ("ranks",), sizes)
        seal(self, "was", self.was, np.bool_, ("layers", "experts", "ranks"), sizes)
        seal(self, "hot", self.hot, np.int32, ("layers", "hot experts"), sizes)

    @property
    def free(self) -> bool:
        """Whether they ask for nothing."""
        return bool((self.room == self.slots).all()) and self.most is None and not self.hot.size

    @property
    def strict(self) -> bool:
        """Whether there is something that a placement can break."""
        return not self.free and (bool((self.room < self.slots).any()) or self.most is not None or self.hard)

    def rules(self, layer: int) -> Rules:
        """Return the limits of a layer as the search takes them; room is that of the first slots of a rank."""
        most = -1 if self.most is None else self.most
        # copies: the search would be compiled once more for arrays that cannot be written
        return Rules(
            np.arange(self.slots) < self.room[layer][:, None], np.array(self.was[layer]), np.array([most], np.int64),
            np.array(self.hot[layer]), np.array([self.nodes], np.int64), np.array([int(self.hard)], np.int64),
            np.array([0.0 if self.hard else self.price]), np.array(self.node),
        )  # fmt: skip

    def breaking(self, experts: Array) -> Array:
        """Return which layers of a placement int [layers, ranks, slots] break something, bool [layers]."""
        held = holders(experts, self.was.shape[1])
        wrong = ((experts != EMPTY).sum(axis=2) > self.room).any(axis=1)
        if self.most is not None:
            wrong |= (held & ~self.was).sum(axis=(1, 2)) > self.most
        if self.hard:
            wrong |= ~self.spread(held).all(axis=1)
        return np.asarray(wrong)

    def breaches(self, experts: Array) -> list[str]:
        """Return what a placement int [layers, ranks, slots] breaks, one line a layer and rule."""
        found = []
        held = holders(experts, self.was.shape[1])
        filled = (experts != EMPTY).sum(axis=2)
        received = (held & ~self.was).sum(axis=(1, 2))
        spread = self.spread(held)
        for layer in range(len(experts)):
            over = np.flatnonzero(filled[layer] > self.room[layer])
            if len(over):
                found.append(
                    f"layer {layer}, rank {over[0]}: {count(int(filled[layer, over[0]]), 'expert')} in "
                    f"{count(int(self.room[layer, over[0]]), 'slot')}"
                )
            if self.most is not None and received[layer] > self.most:
                found.append(
                    f"layer {layer}: {count(int(received[layer]), 'expert')} to receive, allowed: at most {self.most}"
                )
            if self.hard and not spread[layer].all():
                expert = self.hot[layer, np.argmin(spread[layer])]
                found.append(f"layer {layer}: hot expert {expert} is on fewer than {count(self.nodes, 'node')}")
        return found

    def spread(self, held: Array) -> Array:
        """Return whether hot experts have copies on enough nodes, bool [layers, hot experts]."""
        by_node = np.stack([held[:, :, self.node == n].any(axis=2) for n in range(int(self.node.max()) + 1)], axis=2)
        enough: Array = np.take_along_axis(by_node.sum(axis=2), self.hot.astype(np.int64), axis=1) >= self.nodes
        return enough


def holders(experts: Array, count: int) -> Array:
    """Return who holds what, bool [layers, experts, ranks]."""
    held = np.zeros((len(experts), count, experts.shape[1]), bool)
    layer, rank, slot = np.nonzero(experts != EMPTY)
    held[layer, experts[layer, rank, slot], rank] = True
    return held


def limits_of(
    constraints: Constraints,
    loads: Array,
    node: Array,
    slots: int,
    expert_bytes: float,
    previous: Placement | Array | None = None,
    room: Array | None = None,
) -> Limits:
    """Return the constraints as arrays, and refuse what is proven impossible.

    Parameters
    ----------
    loads
        Picks of each expert, float64 [layers, experts]; the most loaded are hot.
    node
        Node of each rank, int32 [ranks].
    slots, expert_bytes
        Slots of a rank; bytes of an expert.
    previous
        Placement that runs, or its experts [layers, ranks, slots], of which some may be nowhere.
    room
        Slots that each rank may fill, int [layers, ranks]; by default those of the constraints.

    Raises
    ------
    Infeasible
        If no placement can respect them: the message holds the count that proves it.
    InputError
        If a number is out of range here, or a move budget lacks the placement that runs.
    """
    layers, experts = loads.shape
    ranks = len(node)
    if constraints.needs_previous and previous is None:
        raise InputError("constraints: a move budget needs the placement that runs; give the previous placement")
    hot = constraints.hot
    if hot > experts:
        raise InputError(f"constraints: {count(hot, 'hot expert')} of {experts}; give at most {experts}")
    if room is None:
        room = np.tile(_room(constraints.rank_slots, ranks, slots), (layers, 1))
    if previous is None:
        was = np.zeros((layers, experts, ranks), bool)
    else:
        was = previous.has if isinstance(previous, Placement) else holders(previous, experts)
    order = np.argsort(-loads, axis=1, kind="stable")[:, :hot]
    limits = Limits(
        room, slots, node, was, constraints.moves(expert_bytes), order, constraints.hot_nodes,
        constraints.mode == "hard", constraints.hot_price,
    )  # fmt: skip
    _prove(limits, experts)
    return limits


def _room(rank_slots: Sequence[int] | None, ranks: int, slots: int) -> Array:
    if rank_slots is None:
        return np.full(ranks, slots)
    given = np.asarray(rank_slots)
    if len(given) != ranks or given.max(initial=0) > slots:
        raise InputError(
            f"constraints: rank_slots: expected a number up to {slots} for each of {count(ranks, 'rank')}, got "
            f"{count(len(given), 'number')} up to {given.max(initial=0)}"
        )
    return given


def _prove(limits: Limits, experts: int) -> None:
    """Refuse what counting shows to be impossible; everything else is possible, but for a move budget."""
    usable = np.minimum(limits.room, experts).sum(axis=1)
    if (usable < experts).any():
        layer = int(usable.argmin())
        raise Infeasible(
            f"slots: the ranks can hold {count(int(usable[layer]), 'different expert')} in layer {layer}, the model "
            f"has {experts}; give more slots"
        )
    _prove_moves(limits)
    if not limits.hard or not limits.hot.size:
        return
    hot, nodes = limits.hot.shape[1], int(limits.node.max()) + 1
    if limits.nodes > nodes:
        raise Infeasible(
            f"hot experts: they shall be on {count(limits.nodes, 'node')}, the cluster has {nodes}; ask for fewer nodes"
        )
    by_node = np.stack([limits.room[:, limits.node == n].sum(axis=1) for n in range(nodes)], axis=1)
    total = by_node.sum(axis=1)
    wanted = experts + hot * (limits.nodes - 1)
    # each node takes a hot expert once (Gale and Ryser: enough for equal wants)
    seats = np.minimum(by_node, hot).sum(axis=1)
    if (total < wanted).any() or (seats < hot * limits.nodes).any():
        layer = int(np.argmax((total < wanted) | (seats < hot * limits.nodes)))
        raise Infeasible(
            f"hot experts: to have {hot} of {experts} on {count(limits.nodes, 'node')} takes {count(wanted, 'slot')} "
            f"in layer {layer}, of which there are {total[layer]}; give more slots, or make fewer experts hot"
        )


def _prove_moves(limits: Limits) -> None:
    """Refuse a move budget that does not do for experts that are nowhere, or hot and on too few nodes."""
    if limits.most is None:
        return
    nodes = int(limits.node.max()) + 1
    by_node = np.stack([limits.was[:, :, limits.node == n].any(axis=2) for n in range(nodes)], axis=2).sum(axis=2)
    lacking = (by_node == 0).astype(np.int64)
    if limits.hard and limits.hot.size:
        hot = limits.hot.astype(np.int64)
        wanted = np.maximum(limits.nodes - np.take_along_axis(by_node, hot, axis=1), 0)
        np.put_along_axis(lacking, hot, wanted, axis=1)
    needed = lacking.sum(axis=1)
    if (needed > limits.most).any():
        layer = int(needed.argmax())
        raise Infeasible(
            f"moves: layer {layer} needs at least {needed[layer]} for experts that are nowhere, or hot and on too few "
            f"nodes; allowed: at most {limits.most}; allow more"
        )
