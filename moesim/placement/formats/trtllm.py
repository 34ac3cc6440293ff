"""TensorRT-LLM's load-balancer YAML, the file that ``moe_config.load_balancer`` names.

```yaml
num_slots: 6
initial_global_assignments:
  1: [0, 1, 2, 3, 4, 0]
layer_updates_per_iter: 0
```

Keys of the assignments are decoder indices, dense layers are left out. TensorRT-LLM refuses any other key, an expert
that is missing in a layer, a row of another length, and a layer without a row. Layers for multi-token prediction have
decoder indices of their own; on reading, rows at or past the number of decoder layers of the model are theirs and are
left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moesim.base.errors import FormatError, InputError
from moesim.base.files import write_text
from moesim.placement.formats import require_whole
from moesim.placement.formats.native import first_problem
from moesim.placement.formats.rows import placement_from_rows
from moesim.placement.placement import Placement
from moesim.spec import ModelSpec


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    num_slots: int
    initial_global_assignments: dict[str, list[int]]
    layer_updates_per_iter: int = Field(default=0, ge=0)


class _Loader(yaml.SafeLoader):
    """Safe YAML in plain Python, which raises on lists nested without end where libyaml's loader would crash."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            # merge keys multiply the work, and of two equal keys YAML silently keeps the last
            if key.tag == "tag:yaml.org,2002:merge" or key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is not wanted", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def sniff(path: Path) -> bool:
    """Return whether the file names the assignments of a load balancer near its beginning."""
    with path.open("rb") as file:
        head = file.read(4096)
    return b"initial_global_assignments" in head and b"record_type" not in head


def read(path: Path, *, ranks: int | None = None, spec: ModelSpec | None = None) -> Placement:
    """Read the rows of the MoE layers.

    Raises
    ------
    FormatError
        If ``ranks`` is missing, or the file is not one that TensorRT-LLM loads for that model.
    """
    try:
        held = _File.model_validate(_keys_as_text(path, _load(path)))
    except ValidationError as error:
        raise FormatError(path, *first_problem(error)) from None
    rows: dict[int, list[int]] = {}
    for key, row in held.initial_global_assignments.items():
        place = f"initial_global_assignments.{key}"
        # longer numbers are no decoder index, and Python refuses to read very long ones
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise FormatError(path, place, "expected a decoder index as key")
        if len(row) != held.num_slots:
            raise FormatError(path, place, f"expected num_slots = {held.num_slots} slots, found {len(row)}")
        if int(key) in rows:
            raise FormatError(path, place, "this layer is there twice")
        rows[int(key)] = row
    wanted = sorted(rows) if spec is None else list(spec.layer_ids)
    if spec is not None:
        # what lies past the decoder layers is for multi-token prediction
        found = sorted(layer for layer in rows if layer < spec.num_hidden_layers)
        if found != wanted:
            raise FormatError(
                path, "initial_global_assignments",
                f"expected one row for each MoE layer of {spec.name!r} ({wanted[0]} to {wanted[-1]}, {len(wanted)} in "
                f"all), found {len(found)}: {_first_difference(wanted, found)}",
            )  # fmt: skip
    named = {f"initial_global_assignments.{layer}": rows[layer] for layer in wanted}
    return placement_from_rows(path, named, ranks=ranks, spec=spec)


def write(placement: Placement, path: Path, *, spec: ModelSpec | None = None) -> None:
    """Write one row an MoE layer, keyed by decoder index.

    Raises
    ------
    InputError
        If a slot is empty, or the decoder index of the MoE layers is not known.
    """
    placement = placement if spec is None else placement.for_model(spec)
    if placement.layer_ids is None:
        raise InputError(
            "TensorRT-LLM numbers all decoder layers, and this placement does not know them: "
            "use placement.for_model(spec), or give spec="
        )
    require_whole(placement, "TensorRT-LLM")
    lines = [f"num_slots: {placement.ranks * placement.slots_per_rank}", "initial_global_assignments:"]
    rows = zip(placement.layer_ids, placement.physical_to_logical.tolist(), strict=True)
    lines += [f"  {layer}: {row}" for layer, row in rows]
    # 0: the placement stays as it is
    write_text(path, "\n".join([*lines, "layer_updates_per_iter: 0", ""]))


def _load(path: Path) -> Any:
    try:
        return yaml.load(path.read_bytes(), Loader=_Loader)
    except RecursionError:
        raise FormatError(path, "", "expected YAML, found lists nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}"
        raise FormatError(path, place, f"expected YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        # PyYAML lets errors of conversions pass: dates out of range, numbers without digits
        raise FormatError(path, "", f"expected YAML: {' '.join(str(error).split())}") from None


def _keys_as_text(path: Path, data: Any) -> Any:
    """Return the data with the layers named by text, as JSON and quoted YAML have them."""
    rows = data.get("initial_global_assignments") if isinstance(data, dict) else None
    if not isinstance(rows, dict):
        return data
    if len(named := {str(key): row for key, row in rows.items()}) != len(rows):
        raise FormatError(path, "initial_global_assignments", "a layer is there twice")
    return data | {"initial_global_assignments": named}


def _first_difference(wanted: list[int], found: list[int]) -> str:
    missing = sorted(set(wanted) - set(found))
    return f"layer {missing[0]} is missing" if missing else f"layer {min(set(found) - set(wanted))} is none of them"
