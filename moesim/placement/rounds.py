"""A migration that can be executed: what is copied in which round, and when received experts take their slots.

Layers go one after the other, as engines move them. A layer goes in one or more *commits*: what a rank receives waits
in staging buffers, and at the end of a commit all of it takes its slots at once. Sources are read before that, so no
copy needs another to be done first, and after every commit each expert is somewhere: serving can go on between commits.
In a *round* a rank exchanges with at most one other rank, one expert each way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import InputError
from moesim.placement.migrate import Migration
from moesim.placement.placement import EMPTY, Placement
from moesim.placement.seats import seats

STORAGE: Final = -1
"""Source of an expert that no rank holds: host memory or disk."""


@dataclass(frozen=True, eq=False)
class Schedule(Sealed):
    """Copies in the order in which they are made.

    Parameters
    ----------
    commit, round
        int32 [moves]: number of the commit, ascending over all layers, and of the round in it, ascending.
    layer, expert, source, target, slot
        int32 [moves]: what is copied, from which rank (`STORAGE`: from none) to which slot of which rank.
    layers, ranks, slots
        Sizes of the placements.
    """

    commit: Array
    round: Array
    layer: Array
    expert: Array
    source: Array
    target: Array
    slot: Array
    layers: int
    ranks: int
    slots: int

    def __post_init__(self) -> None:
        moves = {"moves": len(np.asarray(self.commit))}
        for name in ("commit", "round", "layer", "expert", "source", "target", "slot"):
            seal(self, name, getattr(self, name), np.int32, ("moves",), moves)

    def __len__(self) -> int:
        return len(self.commit)

    @property
    def moves(self) -> Migration:
        """The copies between ranks, without their order; those from storage are left out."""
        told = self.source != STORAGE
        layer, expert, source, target = (getattr(self, name)[told] for name in ("layer", "expert", "source", "target"))
        return Migration(layer, expert, source, target, self.layers, self.ranks)

    @property
    def per_layer(self) -> Array:
        """int64 [layers]: experts received in each layer."""
        return np.bincount(self.layer, minlength=self.layers)

    @property
    def rounds(self) -> int:
        """Rounds in all."""
        return sum(1 for _ in self.every_round())

    @property
    def staging(self) -> int:
        """Experts that a rank must hold beside its slots at a time, at most."""
        cell = self.commit.astype(np.int64) * self.ranks + self.target
        return int(np.bincount(cell).max(initial=0)) if len(self) else 0

    def every_round(self) -> Iterator[slice]:
        """Yield the moves of every round, in order."""
        key = np.stack([self.commit, self.round])
        changes = np.r_[True, (np.diff(key, axis=1) != 0).any(axis=0), True] if len(self) else np.zeros(0, bool)
        for first, last in pairwise(np.flatnonzero(changes).tolist()):
            yield slice(first, last)

    def run(self, running: ArrayLike) -> Array:
        """Return the experts in their slots int32 [layers, ranks, slots] after all commits; checks every step.

        Parameters
        ----------
        running
            Experts before, int [layers, ranks, slots].

        Raises
        ------
        InputError
            If a source does not hold what it sends, a rank meets two peers in a round, or an expert that was
            somewhere is nowhere after a commit.
        """
        now = np.array(running, np.int32)
        for number in np.unique(self.commit):
            part = np.flatnonzero(self.commit == number)
            before = now.copy()
            for move in part:
                layer, expert, source = int(self.layer[move]), int(self.expert[move]), int(self.source[move])
                if source != STORAGE and expert not in before[layer, source]:
                    raise InputError(f"migration: move {move}: rank {source} does not hold expert {expert} to send")
                now[layer, self.target[move], self.slot[move]] = expert
            for layer in np.unique(self.layer[part]):
                lost = np.setdiff1d(before[layer], now[layer])
                if (lost != EMPTY).any():
                    raise InputError(f"migration: commit {number}: expert {lost[-1]} of layer {layer} is nowhere after")
        for part_of in self.every_round():
            peers: dict[int, int] = {}
            for source, target in zip(self.source[part_of].tolist(), self.target[part_of].tolist(), strict=True):
                for one, other in ((source, target), (target, source)):
                    if source != STORAGE and peers.setdefault(one, other) != other:
                        raise InputError(f"migration: rank {one} meets ranks {peers[one]} and {other} in one round")
        return now


class _Arrival(NamedTuple):
    rank: int
    slot: int
    expert: int
    leaves: int


def keep_slots(running: ArrayLike, planned: Placement) -> Placement:
    """Return the planned placement with experts that stay on a rank in the slots that they have there.

    Parameters
    ----------
    running
        Experts now, int [layers, ranks, slots], of the same shape.
    """
    before = np.asarray(running)
    # an empty slot costs nobody his place
    return replace(planned, experts=seats(planned.has, before, np.array(True), before != EMPTY))


def schedule(
    running: ArrayLike, planned: Placement, node: ArrayLike | None = None, staging: int | None = None
) -> Schedule:
    """Return the copies that turn what runs into the planned placement, in rounds and commits.

    Every copy comes from a rank of the receiver's node where one holds the expert, of those from the one that sends
    least so far in the layer. Rounds are few: pairs of ranks with the most left to do go first, which takes at most one
    less than twice the copies of the busiest rank.

    Parameters
    ----------
    running
        Experts now, int [layers, ranks, slots]; an expert may be nowhere, and then comes from storage.
    planned
        What shall run. Slots of one rank may be told apart differently in the end: see :meth:`Schedule.run`.
    node
        int32 [ranks]: node of each rank; None takes all ranks as one node.
    staging
        Experts that a rank can hold beside its slots, at least 1; None: as many as it receives in a layer.

    Raises
    ------
    InputError
        If the placements differ in shape, or there is no staging at all.
    """
    before = np.asarray(running)
    if before.shape != planned.experts.shape:
        raise InputError(
            f"migration: what runs has shape {before.shape} [layers, ranks, slots], the planned placement "
            f"{planned.experts.shape}; plan for what is running"
        )
    if staging is not None and staging < 1:
        raise InputError(f"migration: a rank must have room to receive one expert beside its slots, got {staging}")
    of = np.zeros(before.shape[1], np.int32) if node is None else np.asarray(node)
    after = keep_slots(before, planned).experts
    rows: list[tuple[int, ...]] = []
    commit = 0
    for layer in np.flatnonzero((before != after).any(axis=(1, 2))).tolist():
        now = before[layer].copy()
        waiting = [
            _Arrival(int(r), int(s), int(after[layer, r, s]), int(now[r, s]))
            for r, s in np.argwhere((now != after[layer]) & (after[layer] != EMPTY))
        ]
        sent = np.zeros(len(of), np.int64)
        while waiting:
            chosen, waiting = _commit(now, waiting, planned.num_experts, staging)
            edges = []
            for one in chosen:
                holders = np.flatnonzero((now == one.expert).any(axis=1))
                near = holders[of[holders] == of[one.rank]]
                best = near if len(near) else holders
                source = int(best[sent[best].argmin()]) if len(best) else STORAGE
                if source != STORAGE:
                    sent[source] += 1
                edges.append(source)
            for number, members in enumerate(_rounds(edges, [one.rank for one in chosen])):
                rows += [
                    (commit, number, layer, chosen[i].expert, edges[i], chosen[i].rank, chosen[i].slot) for i in members
                ]
            for one in chosen:
                now[one.rank, one.slot] = one.expert
            commit += 1
    columns: Any = np.array(rows, np.int32).reshape(-1, 7).T
    return Schedule(*columns, *before.shape)


def _commit(
    now: Array, waiting: list[_Arrival], experts: int, staging: int | None
) -> tuple[list[_Arrival], list[_Arrival]]:
    """Return the arrivals of the next commit, and those that wait on."""
    if staging is None or np.bincount([one.rank for one in waiting]).max() <= staging:
        return waiting, []
    copies = np.bincount(now[now != EMPTY], minlength=experts)
    room: dict[int, int] = {}
    chosen: list[_Arrival] = []
    left: list[_Arrival] = []
    for one in waiting:
        # what leaves must be somewhere else after the commit
        safe = one.leaves == EMPTY or copies[one.leaves] > 1
        if safe and room.get(one.rank, 0) < staging:
            room[one.rank] = room.get(one.rank, 0) + 1
            copies[one.expert] += 1
            if one.leaves != EMPTY:
                copies[one.leaves] -= 1
            chosen.append(one)
        else:
            left.append(one)
    return (chosen, left) if chosen else _cycle(waiting)


def _cycle(waiting: list[_Arrival]) -> tuple[list[_Arrival], list[_Arrival]]:
    """Return arrivals that each take the place of the next one's expert, all around, no rank twice; and the others.

    Where every arrival would push out the last copy of an expert, that expert arrives elsewhere, so a walk from one
    to the next comes back to a rank. There the slots of its two arrivals are exchanged to close the circle.
    """
    arrives = {one.expert: index for index, one in enumerate(waiting)}
    items = list(waiting)
    walk = [0]
    while True:
        following = arrives[items[walk[-1]].leaves]
        again = [index for index, i in enumerate(walk) if items[i].rank == items[following].rank]
        if again:
            circle = walk[again[0] :]
            if following != circle[0]:
                head, other = items[circle[0]], items[following]
                items[following] = other._replace(slot=head.slot, leaves=head.leaves)
                items[circle[0]] = head._replace(slot=other.slot, leaves=other.leaves)
                circle = [following, *circle[1:]]
            return [items[i] for i in circle], [one for i, one in enumerate(items) if i not in set(circle)]
        walk.append(following)


def _rounds(sources: list[int], targets: list[int]) -> Iterable[list[int]]:
    """Yield the numbers of the copies of every round: no rank meets two others, a pair exchanges one each way."""
    left: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    stored: dict[int, list[int]] = {}
    for index, (source, target) in enumerate(zip(sources, targets, strict=True)):
        if source == STORAGE:
            stored.setdefault(target, []).append(index)
            continue
        ways = left.setdefault((min(source, target), max(source, target)), ([], []))
        ways[source > target].append(index)
    while left or stored:
        work: dict[int, int] = {}
        for pair, ways in left.items():
            for rank in pair:
                work[rank] = work.get(rank, 0) + max(map(len, ways))
        busy: set[int] = set()
        members = []
        for pair in sorted(left, key=lambda pair: (-max(work[rank] for rank in pair), pair)):
            if busy & set(pair):
                continue
            busy |= set(pair)
            members += [way.pop(0) for way in left[pair] if way]
            if not any(left[pair]):
                del left[pair]
        # a rank that meets nobody reads from storage meanwhile
        for rank in [rank for rank in stored if rank not in busy]:
            members.append(stored[rank].pop(0))
            if not stored[rank]:
                del stored[rank]
        yield sorted(members)
