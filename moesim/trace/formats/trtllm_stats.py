"""TensorRT-LLM's expert statistics: a folder with ``meta_info.json`` and ``rank{r}.safetensors``.

Every tensor ``"{iteration}_{layer}"`` int64 [experts] counts the picks of logical experts that a rank saw; ranks are
summed. Files ``rank{r}_raw.safetensors`` and the like, which other versions write beside them, are left alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import FormatError
from moesim.spec import ModelSpec
from moesim.trace.formats.common import (
    expect_object,
    head,
    origin_of,
    phase_code,
    problems_of,
    read_text,
)
from moesim.trace.formats.model import check_options, given_model, numbered_layers
from moesim.trace.trace import PREFILL, Trace

_RANK_FILE: Final = re.compile(r"rank(\d+)\.safetensors")
_NAME: Final = re.compile(r"(\d{1,9})_(\d{1,9})")
_DTYPES: Final = {"I64": "<i8", "I32": "<i4"}


def sniff(path: str | Path) -> bool:
    """Return whether this is such a folder, or the ``meta_info.json`` in it."""
    file = _meta(path)
    return file.name == "meta_info.json" and b'"num_experts_per_token"' in head(file)


def read(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    numbering: str | None = None,
    phase: str | None = None,
    domain: str = "unlabelled",
    origin: Mapping[str, Any] | None = None,
) -> Trace:
    """Read the counts of every iteration, summed over ranks.

    Parameters
    ----------
    path
        The folder, or its meta_info.json.
    model
        The model that was served: name of a preset, its config.json, or a spec.
    numbering
        How layers are numbered, where the file holds only some of them: decoder, decoder+1 or ordinal.
    phase
        Phase of all of it; prefill if not given, and the origin says so.
    domain
        Name of what was served.
    origin
        Facts to add to the origin.

    Raises
    ------
    FormatError
        If a file is damaged, missing, or does not fit the model.
    """
    check_options(model=model, numbering=numbering, phase=phase, domain=domain, origin=origin)
    meta = _meta(path)
    facts = expect_object(meta, "", read_text(meta))
    with problems_of(path):
        spec = given_model(model)
        for key, wanted in (("num_experts", spec.experts), ("num_experts_per_token", spec.top_k)):
            if facts.get(key) != wanted:
                found = f"found {facts.get(key)!r:.60}; give another model="
                raise FormatError(meta, key, f"expected {wanted} as in {spec.name}, {found}")
        files = sorted(file for file in meta.parent.iterdir() if _RANK_FILE.fullmatch(file.name))
        if not files:
            raise FormatError(meta.parent, "", "expected files rank0.safetensors, ..., found none")
        cells: dict[tuple[int, int], Array] = {}
        held: dict[Path, set[tuple[int, int]]] = {}
        for file in files:
            mine = dict(_tensors(file, spec))
            _check_alike(file, {*mine}, held)
            held[file] = {*mine}
            for cell, counts in mine.items():
                cells[cell] = cells.get(cell, 0) + counts
        if not any(counts.any() for counts in cells.values()):
            raise FormatError(files[0], "", "expected counts, found none; record while requests run")
        # layers that predict further tokens are numbered behind those of the model
        decoder = {layer for _, layer in cells if layer < spec.num_hidden_layers}
        spec, layers = numbered_layers(meta.parent, "layers", decoder, spec, numbering)
        steps = sorted({step for step, _ in cells})
        for step in steps:
            for layer in layers:
                if (step, layer) not in cells:
                    raise FormatError(meta.parent, f"{step}_{layer}", "expected these counts, found none; record again")
        return Trace(
            spec,
            given_counts=np.stack([np.stack([cells[step, layer] for layer in layers]) for step in steps]),
            step=np.array(steps),
            phase=np.full(len(steps), phase_code(phase, PREFILL)),
            domains=(domain,),
            origin=origin_of(
                path,
                "trtllm-stats",
                "TensorRT-LLM's expert statistics",
                spec,
                origin,
                ranks=len(files),
                left_out=len({layer for _, layer in cells} - decoder),
                phase="" if phase else "assumed prefill, the files do not say",
            ),
        )


def _check_alike(file: Path, mine: set[tuple[int, int]], held: Mapping[Path, set[tuple[int, int]]]) -> None:
    """Refuse a rank that lacks some of what another has counted: summed, the rest would weigh too much.

    Ranks of another pipeline stage have nothing in common.
    """
    for other, theirs in held.items():
        if mine & theirs and mine != theirs:
            step, layer = min(mine ^ theirs)
            poor, rich = (file, other) if (step, layer) in theirs else (other, file)
            raise FormatError(
                poor, f"{step}_{layer}", f"expected these counts as in {rich.name}, found none; copy it again"
            )


def _meta(path: str | Path) -> Path:
    return Path(path) / "meta_info.json" if Path(path).is_dir() else Path(path)


def _tensors(path: Path, spec: ModelSpec) -> Iterator[tuple[tuple[int, int], Array]]:
    """Yield ((iteration, layer), counts int64 [experts]) of a file.

    A safetensors file is the length of its header (8 bytes), the header (JSON: dtype, shape, offsets by name) and data.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise FormatError(path, "", f"cannot be read: {error.strerror}") from None
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or size > len(raw) - 8:
        raise FormatError(path, "", "not a complete safetensors file; copy it again")
    try:
        header = json.loads(raw[8 : 8 + size])
    except (ValueError, RecursionError):
        raise FormatError(path, "header", "not a complete safetensors file; copy it again") from None
    data = memoryview(raw)[8 + size :]
    for name, entry in header.items() if isinstance(header, dict) else ():
        if name == "__metadata__":
            continue
        match = _NAME.fullmatch(name)
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if match is None or shape != [spec.experts] or entry.get("dtype") not in _DTYPES:
            found = f"found {name[:60]!r} {str(shape)[:60]}"
            raise FormatError(path, name[:60], f"expected counts [{spec.experts}] named ITERATION_LAYER, {found}")
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        begin, end = _offsets(entry.get("data_offsets"))
        if not 0 <= begin <= end <= len(data) or end - begin != math.prod(shape) * dtype.itemsize:
            raise FormatError(path, name, "its offsets do not fit the file; copy it again")
        counts = np.frombuffer(data[begin:end], dtype).astype(np.int64)
        if counts.min(initial=0) < 0:
            raise FormatError(path, name, "expected counts from 0 up, found a negative one")
        yield (int(match[1]), int(match[2])), counts


def _offsets(value: Any) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2 and all(type(item) is int for item in value):
        return value[0], value[1]
    return -1, -1
