"""vllm-ascend's expert map, the file that ``eplb_config.expert_map_path`` names.

```json
{"moe_layer_count": 1, "layer_list": [{"layer_id": 0, "device_count": 2, "device_list": [
  {"device_id": 0, "device_expert": [0, 1]}, {"device_id": 1, "device_expert": [2, 0]}]}]}
```

vllm-ascend goes by position and looks at none of ``layer_id``, ``device_id`` and ``device_count``; layers count MoE
layers only. An expert twice on one device, or missing in a layer, it accepts and then routes tokens wrongly on every
rank, so both are refused here, and so are numbers that disagree with positions.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from moesim.base.errors import FormatError
from moesim.base.files import write_text
from moesim.placement.formats import require_whole
from moesim.placement.formats.native import first_problem, load_json
from moesim.placement.formats.rows import placement_from_rows
from moesim.placement.placement import Placement
from moesim.spec import ModelSpec


class _Device(BaseModel):
    model_config = ConfigDict(strict=True)

    device_expert: list[int]
    device_id: int | None = None


class _Layer(BaseModel):
    model_config = ConfigDict(strict=True)

    device_list: list[_Device]
    layer_id: int | None = None
    device_count: int | None = None


class _File(BaseModel):
    model_config = ConfigDict(strict=True)

    moe_layer_count: int
    layer_list: list[_Layer]


def sniff(path: Path) -> bool:
    """Return whether the file is JSON that counts MoE layers near its beginning."""
    with path.open("rb") as file:
        head = file.read(400)
    return head.lstrip().startswith(b"{") and (b'"moe_layer_count"' in head or b'"device_list"' in head)


def read(path: Path, *, ranks: int | None = None, spec: ModelSpec | None = None) -> Placement:
    """Read a map; the number of devices is the number of ranks.

    Raises
    ------
    FormatError
        If vllm-ascend would refuse or misread the file, or it does not fit ``ranks`` and ``spec``.
    """
    try:
        held = _File.model_validate(load_json(path))
    except ValidationError as error:
        raise FormatError(path, *first_problem(error)) from None
    if held.moe_layer_count != len(held.layer_list):
        raise FormatError(
            path, "moe_layer_count", f"expected {len(held.layer_list)}, the length of layer_list, "
            f"found {held.moe_layer_count}"
        )  # fmt: skip
    if not held.layer_list or not held.layer_list[0].device_list:
        raise FormatError(path, "layer_list", "expected at least one layer with at least one device")
    devices = len(held.layer_list[0].device_list)
    slots = len(held.layer_list[0].device_list[0].device_expert)
    rows = {}
    for position, layer in enumerate(held.layer_list):
        place = f"layer_list.{position}"
        _in_place(path, f"{place}.layer_id", layer.layer_id, position)
        for name, count in (("device_list", len(layer.device_list)), ("device_count", layer.device_count)):
            if count not in (devices, None):
                raise FormatError(
                    path,
                    f"{place}.{name}",
                    f"expected as many devices as in the first layer ({devices}), found {count}",
                )
        for number, device in enumerate(layer.device_list):
            _in_place(path, f"{place}.device_list.{number}.device_id", device.device_id, number)
            if len(device.device_expert) != slots:
                raise FormatError(
                    path, f"{place}.device_list.{number}.device_expert",
                    f"expected as many experts as on the first device ({slots}), found {len(device.device_expert)}",
                )  # fmt: skip
        rows[place] = [expert for device in layer.device_list for expert in device.device_expert]
    if ranks not in (devices, None):
        raise FormatError(
            path, "layer_list.0.device_list", f"expected a device for each rank ({ranks}), found {devices}"
        )
    return placement_from_rows(path, rows, ranks=devices, spec=spec)


def write(placement: Placement, path: Path, *, spec: ModelSpec | None = None) -> None:
    """Write a map.

    Raises
    ------
    InputError
        If a slot is empty.
    """
    placement = placement if spec is None else placement.for_model(spec)
    require_whole(placement, "vllm-ascend")
    layers = [
        {
            "layer_id": layer,
            "device_count": placement.ranks,
            "device_list": [{"device_id": rank, "device_expert": held} for rank, held in enumerate(devices)],
        }
        for layer, devices in enumerate(placement.experts.tolist())
    ]
    text = json.dumps({"moe_layer_count": placement.layers, "layer_list": layers})
    # one device a line
    text = text.replace('{"layer_id"', '\n {"layer_id"').replace('{"device_id"', '\n  {"device_id"')
    write_text(path, text.replace(", \n", ",\n") + "\n")


def _in_place(path: Path, place: str, number: int | None, position: int) -> None:
    if number not in (position, None):
        raise FormatError(
            path, place, f"expected {position}, its position, found {number}; vllm-ascend goes by position and would "
            "ignore the number: put the entries in order"
        )  # fmt: skip
