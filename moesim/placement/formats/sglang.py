"""SGLang's ``--init-expert-location`` file: ``{"physical_to_logical_map": [[...], ...]}`` and no other key.

One row a decoder layer, dense layers included; their rows are not used, but must be complete, so they get the trivial
map (slot modulo experts). SGLang 0.5.23 refuses any other key, reads -1 as the last expert and accepts rows of a wrong
length silently, so everything is checked here.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from moesim.base.errors import FormatError, InputError
from moesim.base.files import write_text
from moesim.base.units import count
from moesim.placement.formats import require_whole
from moesim.placement.formats.native import first_problem, load_json
from moesim.placement.formats.rows import placement_from_rows
from moesim.placement.placement import Placement
from moesim.spec import ModelSpec


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    physical_to_logical_map: list[list[int]]


def sniff(path: Path) -> bool:
    """Return whether the file is JSON that starts with SGLang's only key."""
    with path.open("rb") as file:
        head = file.read(200)
    return head.lstrip().startswith(b"{") and b'"physical_to_logical_map"' in head


def read(path: Path, *, ranks: int | None = None, spec: ModelSpec | None = None) -> Placement:
    """Read the MoE rows of a map.

    Raises
    ------
    FormatError
        If ``ranks`` or ``spec`` is missing, or the map does not fit them.
    """
    try:
        rows = _File.model_validate(load_json(path)).physical_to_logical_map
    except ValidationError as error:
        raise FormatError(path, *first_problem(error)) from None
    if ranks is None or spec is None:
        raise FormatError(
            path,
            "",
            "the file tells neither the expert-parallel size nor which layers are dense: give ranks= and spec= "
            "(the model)",
        )
    if len(rows) != spec.num_hidden_layers:
        raise FormatError(
            path, "physical_to_logical_map", f"expected {count(spec.num_hidden_layers, 'row')}, one a decoder layer of "
            f"{spec.name!r}, found {len(rows)}"
        )  # fmt: skip
    for index, row in enumerate(rows):
        if sorted(set(row)) != list(range(spec.experts)) or len(row) != len(rows[0]):
            # dense rows are not used, but SGLang wants them complete
            raise FormatError(path, f"physical_to_logical_map.{index}", _problem(row, len(rows[0]), spec.experts))
    named = {f"physical_to_logical_map.{index}": rows[index] for index in spec.layer_ids}
    return placement_from_rows(path, named, ranks=ranks, spec=spec)


def _problem(row: list[int], slots: int, experts: int) -> str:
    if len(row) != slots:
        return f"expected {count(slots, 'slot')}, found {len(row)}"
    if wrong := [expert for expert in row if not 0 <= expert < experts]:
        return f"expected experts in 0..{experts - 1}, found {wrong[0]}"
    return f"expert {min(set(range(experts)) - set(row))} is in no slot; SGLang needs each in every row"


def write(placement: Placement, path: Path, *, spec: ModelSpec | None = None) -> None:
    """Write the map for all decoder layers.

    Raises
    ------
    InputError
        If a slot is empty, or the decoder index of the MoE layers is not known.
    """
    placement = placement if spec is None else placement.for_model(spec)
    if placement.layer_ids is None or placement.num_hidden_layers is None:
        raise InputError(
            "SGLang numbers all decoder layers, and this placement does not know them: "
            "use placement.for_model(spec), or give spec="
        )
    require_whole(placement, "SGLang")
    slots = placement.ranks * placement.slots_per_rank
    rows = np.tile(np.arange(slots) % placement.num_experts, (placement.num_hidden_layers, 1))
    rows[list(placement.layer_ids)] = placement.physical_to_logical
    text = json.dumps({"physical_to_logical_map": rows.tolist()})
    write_text(path, text.replace("], [", "],\n [") + "\n")
