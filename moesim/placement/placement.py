"""Placement: which expert sits in which slot of which rank, in every MoE layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array, Sealed, digest, seal
from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.spec import ModelSpec

EMPTY: Final = -1
"""Content of a slot that holds no expert."""


@dataclass(frozen=True, eq=False)
class Placement(Sealed):
    """Experts in slots: the whole truth is one array, everything else is derived from it.

    Parameters
    ----------
    experts
        int32 [layers, ranks, slots]: logical expert in each slot, ``EMPTY`` (-1) where there is none.
    num_experts
        Logical experts per MoE layer, E.
    layer_ids, num_hidden_layers
        Decoder index of each MoE layer and the number of all decoder layers, where they are known.
        Engines that number all decoder layers need them; :meth:`for_model` sets them.
    left_out
        MoE layers of the model that this placement does not hold, where the trace did not: no engine can load it.

    Raises
    ------
    InputError
        If an id is out of range, an expert is nowhere in a layer, or twice on one rank.
    """

    experts: Array
    num_experts: int
    layer_ids: tuple[int, ...] | None = None
    num_hidden_layers: int | None = None
    left_out: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_experts", int(self.num_experts))
        experts = seal(self, "experts", self.experts, np.int32, ("layers", "ranks", "slots"))
        if self.num_experts < 1 or 0 in experts.shape:
            raise InputError(
                f"Placement: expected at least one expert, layer, rank and slot, "
                f"got {count(self.num_experts, 'expert')} and shape {experts.shape}"
            )
        _check_ids(experts, self.num_experts)
        # before copies are counted: an id of nonsense in a file would ask for memory of its size
        _check_room(experts, self.num_experts)
        _check_coverage(self.replicas)
        _check_duplicates(experts)
        if (self.layer_ids is None) != (self.num_hidden_layers is None):
            raise InputError("Placement: give layer_ids and num_hidden_layers together, or neither")
        if self.layer_ids is not None and self.num_hidden_layers is not None:
            ids = tuple(int(i) for i in self.layer_ids)
            object.__setattr__(self, "layer_ids", ids)
            ascending = list(ids) == sorted(set(ids))
            if len(ids) != self.layers or not ascending or ids[0] < 0 or ids[-1] >= self.num_hidden_layers:
                raise InputError(
                    f"Placement.layer_ids: expected {self.layers} ascending decoder indices "
                    f"in 0..{self.num_hidden_layers - 1}, got {ids}"
                )
        most = 0 if self.num_hidden_layers is None else self.num_hidden_layers - self.layers
        if not 0 <= self.left_out <= most:
            raise InputError(
                f"Placement.left_out: expected 0..{most}, the decoder layers that are not among layer_ids, got "
                f"{self.left_out}"
            )

    @property
    def layers(self) -> int:
        """Number of MoE layers, L."""
        return int(self.experts.shape[0])

    @property
    def ranks(self) -> int:
        """Number of ranks of the expert-parallel group, R."""
        return int(self.experts.shape[1])

    @property
    def slots_per_rank(self) -> int:
        """Number of slots of a rank in one layer, C."""
        return int(self.experts.shape[2])

    @property
    def physical_to_logical(self) -> Array:
        """int32 [layers, ranks * slots]: rank r owns the slots ``r * C`` to ``(r + 1) * C - 1``."""
        return self.experts.reshape(self.layers, -1)

    @cached_property
    def replicas(self) -> Array:
        """int64 [layers, experts]: copies of every expert."""
        flat = self.physical_to_logical.astype(np.int64)
        cell = flat + np.arange(self.layers)[:, None] * self.num_experts
        counts = np.bincount(cell[flat != EMPTY], minlength=self.layers * self.num_experts)
        counts = counts.reshape(self.layers, self.num_experts)
        counts.flags.writeable = False
        return counts

    @cached_property
    def has(self) -> Array:
        """Whether the rank holds the expert, bool [layers, experts, ranks]."""
        mask = np.zeros((self.layers, self.num_experts, self.ranks), dtype=bool)
        layer, rank, slot = np.nonzero(self.experts != EMPTY)
        mask[layer, self.experts[layer, rank, slot], rank] = True
        mask.flags.writeable = False
        return mask

    @cached_property
    def empty_slots(self) -> int:
        """Number of slots that hold no expert, over all layers."""
        return int(np.count_nonzero(self.experts == EMPTY))

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits that name the content."""
        return digest(self.experts, self.num_experts)

    def holders(self, layer: int) -> tuple[Array, Array, Array]:
        """Return who holds each expert of one layer, as compressed rows.

        Returns
        -------
        indptr
            int64 [experts + 1]: the holders of expert e are the entries ``indptr[e]`` to ``indptr[e + 1] - 1``.
        rank
            int32 [holders], ascending for each expert.
        slot
            int32 [holders]: slot on that rank, so ``experts[layer, rank, slot]`` is the expert.
        """
        flat = self.experts[layer].reshape(-1)
        physical = np.argsort(flat, kind="stable")[np.count_nonzero(flat == EMPTY) :]
        indptr = np.concatenate([[0], np.cumsum(self.replicas[layer])])
        rank, slot = np.divmod(physical.astype(np.int32), np.int32(self.slots_per_rank))
        return indptr, rank, slot

    def for_model(self, spec: ModelSpec) -> Placement:
        """Return the same placement with the layer numbering of a model.

        Raises
        ------
        InputError
            If the model has another number of MoE layers or experts.
        """
        if (spec.layers, spec.experts) != (self.layers, self.num_experts):
            raise InputError(
                f"placement: has {count(self.layers, 'layer')} of {count(self.num_experts, 'expert')}, but model "
                f"{spec.name!r} has {count(spec.layers, 'MoE layer')} of {spec.experts}; use the model it was made for"
            )
        return dataclasses.replace(
            self, layer_ids=spec.layer_ids, num_hidden_layers=spec.num_hidden_layers, left_out=spec.left_out
        )

    @classmethod
    def from_physical(cls, physical_to_logical: Any, ranks: int, num_experts: int) -> Placement:
        """Build a placement from a slot-to-expert map [layers, ranks * slots], as engines write it.

        Raises
        ------
        InputError
            If the slots cannot be shared equally by the ranks, or the map is no valid placement.
        """
        flat = np.asarray(physical_to_logical)
        if flat.ndim != 2 or ranks < 1 or flat.shape[1] % ranks:
            raise InputError(
                f"placement map: expected [layers, slots] with slots divisible by {count(ranks, 'rank')}, got shape "
                f"{flat.shape}"
            )
        return cls(flat.reshape(flat.shape[0], ranks, -1), num_experts)

    @classmethod
    def read(cls, path: str | Path, format: str | None = None, **context: Any) -> Placement:
        """Read a placement; see :func:`moesim.placement.formats.read_placement`."""
        from moesim.placement.formats import read_placement

        return read_placement(path, format, **context)

    def write(self, path: str | Path, format: str = "json", **context: Any) -> None:
        """Write a placement; see :func:`moesim.placement.formats.write_placement`."""
        from moesim.placement.formats import write_placement

        write_placement(self, path, format, **context)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placement):
            return NotImplemented
        return self._facts() == other._facts() and np.array_equal(self.experts, other.experts)

    def __hash__(self) -> int:
        return hash(self.digest)

    def _facts(self) -> tuple[object, ...]:
        return self.num_experts, self.layer_ids, self.num_hidden_layers, self.left_out

    def __repr__(self) -> str:
        shape = f"{self.layers} layers, {self.ranks} ranks of {self.slots_per_rank} slots"
        return f"Placement({shape}, {self.num_experts} experts, {self.digest})"

    def summary(self) -> Mapping[str, Any]:
        """Return the facts worth printing, as plain data."""
        return {
            "layers": self.layers,
            "ranks": self.ranks,
            "slots_per_rank": self.slots_per_rank,
            "experts": self.num_experts,
            "replicas_max": int(self.replicas.max()),
            "replicas_mean": float(self.replicas.mean()),
            "empty_slots": self.empty_slots,
            "digest": self.digest,
        }


def _check_ids(experts: Array, num_experts: int) -> None:
    bad = (experts < EMPTY) | (experts >= num_experts)
    if bad.any():
        layer, rank, slot = (int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"Placement.experts: layer {layer}, rank {rank}, slot {slot} holds expert {experts[layer, rank, slot]}; "
            f"expected 0..{num_experts - 1}, or {EMPTY} for an empty slot"
        )


def _check_room(experts: Array, num_experts: int) -> None:
    ranks, slots = experts.shape[1:]
    if ranks * slots < num_experts:
        raise InputError(
            f"Placement.experts: {count(ranks, 'rank')} of {count(slots, 'slot')} cannot hold "
            f"{count(num_experts, 'expert')}; give at least {count(-(-num_experts // ranks), 'slot')} a rank"
        )


def _check_coverage(replicas: Array) -> None:
    missing = np.argwhere(replicas == 0)
    if len(missing):
        layer, expert = (int(i) for i in missing[0])
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"Placement.experts: expert {expert} of layer {layer} is on no rank{more}; place every expert once or more"
        )


def _check_duplicates(experts: Array) -> None:
    ordered = np.sort(experts, axis=2)
    twice = (ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] != EMPTY)
    if twice.any():
        layer, rank, at = (int(i) for i in np.argwhere(twice)[0])
        raise InputError(
            f"Placement.experts: expert {ordered[layer, rank, at + 1]} is twice on rank {rank} in layer {layer}; "
            "a second copy there serves nobody: move it to another rank or leave the slot empty (-1)"
        )
