"""Experimental: the initial mapping of vLLM pull request 41141 (offline EPLB), which is not merged.

One JSON record on one line; keys of the assignments count MoE layers:
``{"record_type": "eplb_initial_mapping", "version": 1, "num_redundant_experts": 2, "num_slots": 6,
"initial_global_assignments": {"0": [0, 1, 2, 3, 0, 1]}}``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from moesim.base.errors import FormatError
from moesim.base.files import write_text
from moesim.base.units import count
from moesim.placement.formats import require_whole
from moesim.placement.formats.native import first_problem, parse_json
from moesim.placement.formats.rows import placement_from_rows
from moesim.placement.placement import Placement
from moesim.spec import ModelSpec

RECORD: Final = "eplb_initial_mapping"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    record_type: Literal["eplb_initial_mapping"]
    version: Literal[1]
    num_redundant_experts: int
    num_slots: int
    initial_global_assignments: dict[str, list[int]]


def sniff(path: Path) -> bool:
    """Return whether the file starts with a record of this type."""
    with path.open("rb") as file:
        head = file.read(400)
    return head.lstrip().startswith(b"{") and f'"{RECORD}"'.encode() in head


def read(path: Path, *, ranks: int | None = None, spec: ModelSpec | None = None) -> Placement:
    """Read the one mapping of a file.

    Raises
    ------
    FormatError
        If ``ranks`` is missing, or the file does not hold exactly one complete mapping.
    """
    lines = [(number, line) for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    if len(lines) != 1:
        raise FormatError(path, "", f"expected one line, an {RECORD!r} record, found {count(len(lines), 'line')}")
    number, line = lines[0]
    try:
        held = _Record.model_validate(parse_json(path, line, f"line {number}"))
    except ValidationError as error:
        raise FormatError(path, *first_problem(error)) from None
    rows: dict[str, Any] = {}
    for layer in range(len(held.initial_global_assignments)):
        place = f"initial_global_assignments.{layer}"
        row = held.initial_global_assignments.get(str(layer))
        if row is None:
            raise FormatError(path, place, "this MoE layer is missing; keys count MoE layers from 0")
        if len(row) != held.num_slots:
            raise FormatError(path, place, f"expected num_slots = {held.num_slots} slots, found {len(row)}")
        rows[place] = row
    experts = held.num_slots - held.num_redundant_experts
    if experts < 1 or (spec is not None and spec.experts != experts):
        wanted = "at least 1 expert" if spec is None else f"{count(spec.experts, 'expert')} of {spec.name!r}"
        raise FormatError(
            path, "num_redundant_experts", f"expected {wanted}, found {held.num_slots} slots of which "
            f"{held.num_redundant_experts} are redundant"
        )  # fmt: skip
    return placement_from_rows(path, rows, ranks=ranks, experts=experts, spec=spec)


def write(placement: Placement, path: Path, *, spec: ModelSpec | None = None) -> None:
    """Write one record.

    Raises
    ------
    InputError
        If a slot is empty.
    """
    placement = placement if spec is None else placement.for_model(spec)
    require_whole(placement, "vLLM")
    slots = placement.ranks * placement.slots_per_rank
    record = {
        "record_type": RECORD,
        "version": 1,
        "num_redundant_experts": slots - placement.num_experts,
        "num_slots": slots,
        "initial_global_assignments": {str(i): row for i, row in enumerate(placement.physical_to_logical.tolist())},
    }
    write_text(path, json.dumps(record) + "\n")
