"""From the rows of experts that a file holds to a checked placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from moesim.base.errors import FormatError, InputError
from moesim.base.units import count
from moesim.placement.placement import Placement
from moesim.spec import ModelSpec


def placement_from_rows(
    path: Path,
    rows: Mapping[str, Sequence[int]],
    *,
    ranks: int | None,
    experts: int | None = None,
    spec: ModelSpec | None = None,
) -> Placement:
    """Return the placement that rows [slots] of experts stand for, one row an MoE layer.

    Parameters
    ----------
    path
        The file, for messages.
    rows
        Place in the file and content of every row, in order of layers.
    ranks
        Ranks that share the slots.
    experts
        Experts per layer; None takes the model's, or one more than the largest id.
    spec
        Gives the placement the numbering of a model.

    Raises
    ------
    FormatError
        If the rows differ in length, hold an id out of range, or are no placement of that model on these ranks.
    """
    if ranks is None:
        raise FormatError(path, "", "the file does not tell the number of ranks: give ranks=")
    if not rows:
        raise FormatError(path, "", "expected at least one layer, found none")
    slots = len(next(iter(rows.values())))
    known = spec.experts if spec is not None else experts
    stop = 1 + max((max(row, default=0) for row in rows.values()), default=0) if known is None else known
    if stop > np.iinfo(np.int32).max:
        raise FormatError(path, next(iter(rows)), f"expected ids of experts, found {stop - 1}")
    for place, row in rows.items():
        if len(row) != slots:
            raise FormatError(path, place, f"expected {count(slots, 'slot')} as in the first layer, found {len(row)}")
        for slot, expert in enumerate(row):
            if not 0 <= expert < stop:
                raise FormatError(path, f"{place}.{slot}", f"expected an expert in 0..{stop - 1}, found {expert}")
    try:
        placement = Placement.from_physical(np.array(list(rows.values()), dtype=np.int32), ranks, stop)
        return placement if spec is None else placement.for_model(spec)
    except InputError as error:
        raise FormatError(path, "", f"{error} (layers count MoE layers only)") from None
