"""The migration schedule: JSON with the copies to make, one a line, in the order in which they are made.

Not a placement, so not in the registry of placement formats. Who executes it reads line by line: copies of one
``round`` run at once, rounds one after the other into staging buffers, and after the last round of a ``commit`` what
was received takes its slots; see :mod:`moesim.placement.rounds`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from moesim.base.errors import FormatError, InputError
from moesim.base.files import write_text
from moesim.placement.formats.native import first_problem, load_json
from moesim.placement.rounds import STORAGE, Schedule

SCHEMA: Final = "moesim.migration/2"
_COLUMNS: Final = ("commit", "round", "layer", "expert", "source", "target", "slot")


class _Move(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    commit: NonNegativeInt
    round: NonNegativeInt
    layer: NonNegativeInt
    expert: NonNegativeInt
    source: Annotated[int, Field(ge=STORAGE)]
    target: NonNegativeInt
    slot: NonNegativeInt


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: Literal["moesim.migration/2"]
    layers: PositiveInt
    ranks: PositiveInt
    slots: PositiveInt
    moves: list[_Move]


def write_schedule(schedule: Schedule, path: str | Path) -> None:
    """Write a migration schedule, one copy a line; source -1 stands for storage."""
    columns = (getattr(schedule, name).tolist() for name in _COLUMNS)
    lines = [json.dumps(dict(zip(_COLUMNS, move, strict=True))) for move in zip(*columns, strict=True)]
    sizes = {"layers": schedule.layers, "ranks": schedule.ranks, "slots": schedule.slots}
    head = json.dumps({"schema_version": SCHEMA, **sizes})
    write_text(path, f'{head[:-1]}, "moves": [\n ' + ",\n ".join(lines) + "\n]}\n")


def read_schedule(path: str | Path) -> Schedule:
    """Read a migration schedule.

    Raises
    ------
    FormatError
        If the file breaks the schema, a number is out of range, a rank sends to itself or meets two ranks in a round,
        copies are out of order, a commit spans layers, or a slot or an expert is received twice.
    """
    file = Path(path)
    if not file.is_file():
        raise FormatError(file, "", "no such file; give the path of a migration schedule")
    try:
        held = _File.model_validate(load_json(file))
    except ValidationError as error:
        raise FormatError(file, *first_problem(error)) from None
    before: _Move | None = None
    state = _State()
    for number, move in enumerate(held.moves):
        problem = _wrong(held, before, move, state)
        if problem:
            raise FormatError(file, f"moves.{number}", problem)
        before = move
    columns: dict[str, Any] = {
        name: np.array([getattr(move, name) for move in held.moves], dtype=object) for name in _COLUMNS
    }
    try:
        return Schedule(**columns, layers=held.layers, ranks=held.ranks, slots=held.slots)
    except InputError as error:
        raise FormatError(file, "moves", str(error)) from None


class _State:
    """What was seen so far: arrivals of all layers, and who meets whom in the present round."""

    def __init__(self) -> None:
        self.arrived: set[tuple[int, int, int]] = set()
        self.filled: set[tuple[int, int, int]] = set()
        self.peer: dict[int, int] = {}


def _wrong(held: _File, before: _Move | None, move: _Move, state: _State) -> str:
    if move.layer >= held.layers or max(move.source, move.target) >= held.ranks or move.slot >= held.slots:
        return f"expected a layer below {held.layers}, ranks below {held.ranks} and a slot below {held.slots}"
    if move.source == move.target:
        return f"rank {move.source} sends to itself; leave the copy out"
    now = (move.commit, move.round)
    if before is not None and now < (before.commit, before.round):
        return f"commit {move.commit}, round {move.round} comes after a later one; put the copies in order"
    if before is not None and move.layer < before.layer:
        return f"layer {move.layer} comes after a later one; put the copies in order"
    if before is not None and move.commit == before.commit and move.layer != before.layer:
        return f"commit {move.commit} is of layer {before.layer}; begin another one for layer {move.layer}"
    if before is None or now != (before.commit, before.round):
        state.peer.clear()
    for one, other in ((move.source, move.target), (move.target, move.source)):
        if move.source != STORAGE and state.peer.setdefault(one, other) != other:
            return f"rank {one} meets ranks {state.peer[one]} and {other} in one round; put one of them later"
    if (arrival := (move.layer, move.expert, move.target)) in state.arrived:
        return f"rank {move.target} receives expert {move.expert} twice"
    if (place := (move.layer, move.target, move.slot)) in state.filled:
        return f"slot {move.slot} of rank {move.target} is filled twice"
    state.arrived.add(arrival)
    state.filled.add(place)
    return ""
