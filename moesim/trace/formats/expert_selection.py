"""Expert selection traces as published by core12345: one JSON file a request, or folders of them.

A file is a list of steps, the prompt first and then one a decoded token. A step maps the number of each decoder layer
to None (a dense layer) or to the ids of every token, ``{"0": null, "1": [[3, 7], ...], ...}``. Ids are logical.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import FormatError
from moesim.base.units import count
from moesim.spec import ModelSpec
from moesim.trace.formats.common import (
    expect_picks,
    expert_ids,
    head,
    integers,
    join,
    origin_of,
    parse_json,
    problems_of,
    read_text,
)
from moesim.trace.formats.model import check_options, given_model, numbered_layers
from moesim.trace.trace import DECODE, PREFILL, Trace

_START: Final = re.compile(rb'\s*\[\s*\{\s*"\d+"\s*:\s*(null|\[)')


def sniff(path: str | Path) -> bool:
    """Return whether this is such a file, or a folder whose first JSON file is one."""
    file = Path(path)
    if file.is_dir():
        first = next((found for found in sorted(file.rglob("*.json"))), None)
        return first is not None and _START.match(head(first)) is not None
    return _START.match(head(file)) is not None


def parts(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    numbering: str | None = None,
    domain: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Iterator[Trace]:
    """Yield one request after another; see `read`."""
    check_options(model=model, numbering=numbering, domain=domain, origin=origin)
    with problems_of(path):
        whole = given_model(model)
        files = sorted(Path(path).rglob("*.json"), key=_natural) if Path(path).is_dir() else [Path(path)]
        for request, file in enumerate(files):
            spec, routes, prompt = _request(file, whole, numbering)
            name = domain or (file.parent.name if Path(path).is_dir() else "unlabelled")
            row = np.arange(len(routes))
            with problems_of(file):
                yield Trace(
                    spec,
                    routes,
                    request=np.full(len(routes), request),
                    position=row,
                    phase=np.where(row < prompt, PREFILL, DECODE),
                    domains=(name,),
                    origin=origin_of(path, "expert-selection", "core12345/MoE_expert_selection_trace", spec, origin),
                )


def read(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    numbering: str | None = None,
    domain: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Trace:
    """Read a request, or a folder of them.

    Parameters
    ----------
    path
        A file, or a folder; all JSON files below it are read in natural order.
    model
        The model that was recorded: name of a preset, its config.json, or a spec.
    numbering
        How layers are numbered, where they are not all there: decoder, decoder+1 or ordinal.
    domain
        Name of the domain; in a folder, otherwise that of the folder each file lies in.
    origin
        Facts to add to the origin.

    Raises
    ------
    FormatError
        If a file is damaged or does not fit the model.
    """
    return join(path, parts(path, model=model, numbering=numbering, domain=domain, origin=origin))


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _request(path: Path, spec: ModelSpec, numbering: str | None) -> tuple[ModelSpec, Array, int]:
    """Return the spec, ids [tokens, layers, top_k] and the length of the prompt of a file."""
    steps = parse_json(path, "", read_text(path))
    if not isinstance(steps, list) or not steps:
        raise FormatError(path, "", "expected a list of steps, found none")
    routed: list[dict[int, Any]] = []
    for number, step in enumerate(steps):
        if not isinstance(step, dict) or not all(re.fullmatch(r"\d{1,6}", key) for key in step):
            raise FormatError(path, f"step {number}", "expected ids by the number of the decoder layer")
        routed.append({int(key): value for key, value in step.items() if value is not None})
    found, layers = numbered_layers(path, "step 0", routed[0], spec, numbering)
    blocks = []
    for number, ids in enumerate(routed):
        if sorted(ids) != layers:
            raise FormatError(path, f"step {number}", "holds other layers than step 0; record again")
        rows: list[Array] = []
        for layer in layers:
            place = f"step {number}, layer {layer}"
            array = integers(path, place, ids[layer], ("tokens", "picks"))
            expect_picks(path, place, array.shape[1], spec)
            if rows and len(array) != len(rows[0]):
                raise FormatError(
                    path, place, f"expected {count(len(rows[0]), 'token')} as in layer {layers[0]}, found {len(array)}"
                )
            rows.append(expert_ids(path, place, array))
        blocks.append(np.stack(rows, axis=1))
    return found, np.concatenate(blocks), len(blocks[0])
