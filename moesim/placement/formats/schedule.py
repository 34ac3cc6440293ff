"""The migration schedule: JSON with the copies to make, layer by layer in the order of the file.

Not a placement, so not in the registry of placement formats. Engines that move experts while serving copy one layer at
a time through a buffer, which is why the moves of a layer stand together and none of them needs another to be done
before it: every source holds its expert in the placement that runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from moesim.base.errors import FormatError, InputError
from moesim.base.files import write_text
from moesim.placement.formats.native import first_problem, load_json
from moesim.placement.migrate import Migration

SCHEMA: Final = "moesim.migration/1"
_COLUMNS: Final = ("layer", "expert", "source", "target")


class _Move(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    layer: NonNegativeInt
    expert: NonNegativeInt
    source: NonNegativeInt
    target: NonNegativeInt


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: Literal["moesim.migration/1"]
    layers: PositiveInt
    ranks: PositiveInt
    moves: list[_Move]


def write_migration(moves: Migration, path: str | Path) -> None:
    """Write a migration, one move a line: MoE layer, expert, rank that sends it, rank that receives it."""
    columns = (getattr(moves, name).tolist() for name in _COLUMNS)
    lines = [json.dumps(dict(zip(_COLUMNS, move, strict=True))) for move in zip(*columns, strict=True)]
    head = json.dumps({"schema_version": SCHEMA, "layers": moves.layers, "ranks": moves.ranks})
    write_text(path, f'{head[:-1]}, "moves": [\n ' + ",\n ".join(lines) + "\n]}\n")


def read_migration(path: str | Path) -> Migration:
    """Read a migration.

    Raises
    ------
    FormatError
        If the file breaks the schema, a number is out of range, a rank sends to itself, layers are out of order, or
        the same expert is sent twice to a rank.
    """
    file = Path(path)
    if not file.is_file():
        raise FormatError(file, "", "no such file; give the path of a migration schedule")
    try:
        held = _File.model_validate(load_json(file))
    except ValidationError as error:
        raise FormatError(file, *first_problem(error)) from None
    seen = set()
    for number, move in enumerate(held.moves):
        place = f"moves.{number}"
        if move.layer >= held.layers or max(move.source, move.target) >= held.ranks:
            raise FormatError(file, place, f"expected a layer below {held.layers} and ranks below {held.ranks}")
        if move.source == move.target:
            raise FormatError(file, place, f"rank {move.source} sends to itself; leave the move out")
        if number and move.layer < held.moves[number - 1].layer:
            raise FormatError(file, place, f"layer {move.layer} comes after a later one; put the moves in order")
        if (arrival := (move.layer, move.expert, move.target)) in seen:
            raise FormatError(file, place, f"rank {move.target} receives expert {move.expert} twice")
        seen.add(arrival)
    columns = {name: np.array([getattr(move, name) for move in held.moves], dtype=object) for name in _COLUMNS}
    try:
        return Migration(**columns, layers=held.layers, ranks=held.ranks)
    except InputError as error:
        raise FormatError(file, "moves", str(error)) from None
