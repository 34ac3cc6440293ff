"""What a placement must respect beside slots and memory: a move budget, spread of hot experts, unequal ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from moesim.base.errors import InputError, UnknownName

MODES: Final = ("hard", "soft")
"""Ways to ask for a spread of hot experts: as a condition, or for a price."""

_MANY: Final = 2**31
"""Moves that no layer needs; more would not fit the arrays."""


@dataclass(frozen=True)
class Constraints:
    """Conditions on a placement; the defaults ask for nothing.

    Parameters
    ----------
    rank_slots
        Slots that each rank may fill, one number a rank, none above ``slots_per_rank``; the others stay empty.
    slot_budget
        Slots of a rank added up over all layers: layers where copies pay get more of them (CRAFT-like).
    most_moves, most_bytes
        Experts, or bytes of experts, that all ranks together may receive in a layer, coming from the placement that
        runs. Moving an expert between slots of one rank is free.
    hot
        So many of the most loaded experts of every layer shall have copies on ``hot_nodes`` nodes, so that the loss of
        a node takes none of them away.
    hot_nodes
        Nodes that hold a hot expert at least.
    mode
        ``"hard"``: a placement that does not spread the hot experts is refused. ``"soft"``: each of them that is not
        spread costs ``hot_price``.
    hot_price
        Price of a hot expert that is not spread, as a share of the time of its layer.

    Raises
    ------
    InputError
        If a number is out of range.
    """

    rank_slots: tuple[int, ...] | None = None
    slot_budget: int | None = None
    most_moves: int | None = None
    most_bytes: float | None = None
    hot: int = 0
    hot_nodes: int = 2
    mode: Literal["hard", "soft"] = "hard"
    hot_price: float = 0.01

    def __post_init__(self) -> None:
        if self.rank_slots is not None:
            object.__setattr__(self, "rank_slots", _whole("rank_slots", self.rank_slots))
        for name, least in (("slot_budget", 1), ("most_moves", 0), ("most_bytes", 0), ("hot", 0), ("hot_nodes", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise InputError(f"constraints: {name}: expected at least {least}, got {value}")
        if self.mode not in MODES:
            raise UnknownName("mode of a constraint", self.mode, MODES)
        if not 0 <= self.hot_price < np.inf:
            raise InputError(f"constraints: hot_price: expected a share of the layer time, got {self.hot_price}")

    @property
    def needs_previous(self) -> bool:
        """Whether they speak of the placement that runs."""
        return self.most_moves is not None or self.most_bytes is not None

    def moves(self, expert_bytes: float) -> int | None:
        """Return the experts that may be received in a layer, None for any number."""
        limits: list[float] = [] if self.most_moves is None else [self.most_moves]
        if self.most_bytes is not None:
            limits.append(min(self.most_bytes, expert_bytes * _MANY) // expert_bytes)
        return int(min(*limits, _MANY)) if limits else None

    def to_dict(self) -> dict[str, Any]:
        """Return what is asked for, as plain data; nothing where nothing is."""
        plain = Constraints()
        asked = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in _HOT}
        if self.hot:
            asked |= {name: getattr(self, name) for name in _HOT}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asked.items()
            if name in _HOT or value != getattr(plain, name)
        }


_HOT: Final = ("hot", "hot_nodes", "mode", "hot_price")


def _whole(name: str, values: Sequence[int]) -> tuple[int, ...]:
    given = np.asarray(values)
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer) or (given < 0).any():
        raise InputError(f"constraints: {name}: expected a whole number for each rank, none negative, got {values}")
    return tuple(int(value) for value in given)
