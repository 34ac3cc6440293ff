"""The project's own placement file: JSON with a schema version and a digest of the content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from moesim.base.errors import FormatError, InputError
from moesim.base.files import write_text
from moesim.base.units import count
from moesim.placement.placement import Placement
from moesim.spec import ModelSpec

SCHEMA: Final = "moesim.placement/1"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: Literal["moesim.placement/1"]
    num_experts: int
    layer_ids: list[int] | None
    num_hidden_layers: int | None
    left_out: int = 0
    digest: str
    experts: list[list[list[int]]]


def sniff(path: Path) -> bool:
    """Return whether the file is JSON that names this schema."""
    with path.open("rb") as file:
        head = file.read(200)
    return head.lstrip().startswith(b"{") and b'"moesim.placement/' in head


def read(path: Path, *, ranks: int | None = None, spec: ModelSpec | None = None) -> Placement:
    """Read a placement and compare it with the digest that was written beside it.

    Raises
    ------
    FormatError
        If the file is no JSON, breaks the schema, is no valid placement or was changed after it was written.
    """
    data = load_json(path)
    try:
        held = _File.model_validate(data)
    except ValidationError as error:
        raise FormatError(path, *first_problem(error)) from None
    for layer, rows in enumerate(held.experts):
        if len(rows) != len(held.experts[0]) or any(len(row) != len(held.experts[0][0]) for row in rows):
            raise FormatError(path, f"experts.{layer}", "expected as many ranks and slots as in the layers before")
    try:
        placement = Placement(
            np.array(held.experts), held.num_experts, _tuple(held.layer_ids), held.num_hidden_layers, held.left_out
        )  # fmt: skip
    except InputError as error:
        raise FormatError(path, "experts", str(error)) from None
    if placement.digest != held.digest:
        raise FormatError(
            path, "digest", f"expected {placement.digest} for these experts, found {held.digest}; "
            "the file was changed after it was written: write it again"
        )  # fmt: skip
    if ranks is not None and ranks != placement.ranks:
        raise FormatError(path, "experts", f"expected {count(ranks, 'rank')}, found {placement.ranks}")
    return placement if spec is None else placement.for_model(spec)


def write(placement: Placement, path: Path, *, spec: ModelSpec | None = None) -> None:
    """Write a placement, empty slots as -1."""
    placement = placement if spec is None else placement.for_model(spec)
    text = json.dumps(to_dict(placement), separators=(", ", ": "))
    # one rank a line: readable and easy to compare
    write_text(path, text.replace("]], [[", "]],\n [[").replace("], [", "],\n  [") + "\n")


def to_dict(placement: Placement) -> dict[str, Any]:
    """Return the placement as plain data in this schema."""
    return {
        "schema_version": SCHEMA,
        "num_experts": placement.num_experts,
        "layer_ids": None if placement.layer_ids is None else list(placement.layer_ids),
        "num_hidden_layers": placement.num_hidden_layers,
        **({"left_out": placement.left_out} if placement.left_out else {}),
        "digest": placement.digest,
        "experts": placement.experts.tolist(),
    }


def load_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises
    ------
    FormatError
        If it is none.
    """
    return parse_json(path, path.read_bytes())


def parse_json(path: Path, text: bytes, line: str = "") -> Any:
    """Return the content of JSON text; ``line`` says where in the file it stands, if not all of it.

    Raises
    ------
    FormatError
        If it is none.
    """
    try:
        return json.loads(text)
    except UnicodeDecodeError:
        raise FormatError(path, line, "expected JSON text, found binary data") from None
    except json.JSONDecodeError as error:
        raise FormatError(path, line or f"line {error.lineno}", f"expected JSON: {error.msg}") from None
    except ValueError as error:
        # numbers of thousands of digits
        raise FormatError(path, line, f"expected JSON: {error}") from None
    except RecursionError:
        raise FormatError(path, line, "expected JSON, found lists nested too deeply") from None


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Return place and text of the first problem that pydantic found."""
    first = error.errors()[0]
    found = "" if isinstance(first["input"], (dict, list)) else f", found {first['input']!r}"
    return ".".join(str(part) for part in first["loc"]), first["msg"] + found


def _tuple(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)
