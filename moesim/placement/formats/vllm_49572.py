"""Experimental: the initial expert map of vLLM pull request 49572, which is not merged.

JSON, either one row of experts a MoE layer, ``[[0, 1, 2, 0], [2, 1, 0, 1]]``, or a single row that all layers share,
``[0, 1, 2, 0]``. The first form is written, both are read.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import ConfigDict, RootModel, ValidationError

from moesim.base.errors import FormatError
from moesim.base.files import write_text
from moesim.placement.formats import require_whole
from moesim.placement.formats.native import first_problem, load_json
from moesim.placement.formats.rows import placement_from_rows
from moesim.placement.placement import Placement
from moesim.spec import ModelSpec


class _Rows(RootModel[list[list[int]]]):
    model_config = ConfigDict(strict=True)


class _Shared(RootModel[list[int]]):
    model_config = ConfigDict(strict=True)


def sniff(path: Path) -> bool:
    """Return whether the file starts like a list of whole numbers, or of lists of them."""
    with path.open("rb") as file:
        return re.match(rb"\s*\[\s*(\[\s*)?\d+\s*[,\]]", file.read(200)) is not None


def read(path: Path, *, ranks: int | None = None, spec: ModelSpec | None = None) -> Placement:
    """Read a map; a shared row needs ``spec``, which says how many layers share it.

    Raises
    ------
    FormatError
        If ``ranks``, or ``spec`` of a shared row, is missing, or the map does not fit them.
    """
    data = load_json(path)
    shared = isinstance(data, list) and bool(data) and not isinstance(data[0], list)
    if shared and spec is None:
        raise FormatError(path, "", "one row for all layers does not tell their number: give spec=")
    try:
        if shared and spec is not None:
            rows = [_Shared.model_validate(data).root] * spec.layers
        else:
            rows = _Rows.model_validate(data).root
    except ValidationError as error:
        raise FormatError(path, *first_problem(error)) from None
    named = {f"row {layer}": row for layer, row in enumerate(rows)}
    return placement_from_rows(path, named, ranks=ranks, spec=spec)


def write(placement: Placement, path: Path, *, spec: ModelSpec | None = None) -> None:
    """Write one row a MoE layer.

    Raises
    ------
    InputError
        If a slot is empty.
    """
    placement = placement if spec is None else placement.for_model(spec)
    require_whole(placement, "vLLM")
    write_text(path, json.dumps(placement.physical_to_logical.tolist()).replace("], [", "],\n [") + "\n")
