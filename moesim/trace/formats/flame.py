"""FLAME-MoE's traces: a folder of Parquet files, one a layer, for every recorded training iteration.

``actives/iter_N/layer_NN.parquet`` with ``indices`` list<int16>[top_k] (logical ids) and ``scores``
list<float16>[top_k]; row i of every layer is row i of ``samples/*.parquet``, whose tokens are not needed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import FormatError, InputError
from moesim.spec import ModelSpec
from moesim.trace.formats.common import (
    expect_picks,
    expert_ids,
    one_line,
    origin_of,
    phase_code,
    problems_of,
)
from moesim.trace.formats.model import check_options, given_model, numbered_layers
from moesim.trace.trace import PREFILL, Trace

_LAYER: Final = re.compile(r"layer_(\d{1,6})\.parquet")
_ITERATION: Final = re.compile(r"iter_(\d{1,9})")
_CONTEXT: Final = 2048
"""Tokens of a training sequence of FLAME-MoE (its paper, table of hyper-parameters)."""


def sniff(path: str | Path) -> bool:
    """Return whether this is such a folder, or that of one iteration."""
    folder = Path(path)
    return folder.is_dir() and bool(_iterations(folder))


def read(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    experts: int | None = None,
    dims: str | None = None,
    numbering: str | None = None,
    iteration: int | None = None,
    request_tokens: int | None = None,
    phase: str | None = None,
    domain: str = "unlabelled",
    origin: Mapping[str, Any] | None = None,
) -> Trace:
    """Read the tokens of one iteration.

    Parameters
    ----------
    path
        The folder with ``actives`` in it, or that of an iteration.
    model
        The model that was recorded: its config.json, a spec, or the name of a preset.
    experts, dims
        Instead of a model: its number of experts, and the preset whose dimensions to use.
    numbering
        How layers are numbered, where they are not all there: decoder, decoder+1 or ordinal.
    iteration
        Which one, where there are several.
    request_tokens
        Tokens of a sequence, which are not recorded; 2048 if not given, and the origin says so.
    phase
        Phase of all tokens; prefill if not given: whole sequences are routed at once.
    domain
        Name of the text.
    origin
        Facts to add to the origin.

    Raises
    ------
    FormatError
        If a file is damaged, layers disagree, or they do not fit the model.
    """
    check_options(
        model=model, experts=experts, dims=dims, numbering=numbering, iteration=iteration,
        request_tokens=request_tokens, phase=phase, domain=domain, origin=origin,
    )  # fmt: skip
    if request_tokens is not None and request_tokens < 1:
        raise InputError(f"option request_tokens: expected at least 1, got {request_tokens}")
    folder = _iteration(Path(path), iteration)
    files = {int(m[1]): file for file in sorted(folder.iterdir()) if (m := _LAYER.fullmatch(file.name))}
    with problems_of(path):
        first = _lists(files[min(files)], "indices")
        if model is None and experts is not None and dims is not None:
            layer_ids = tuple(sorted(files))
            bare = ModelSpec(
                Path(path).name, layer_ids, layer_ids[-1] + 1, experts=experts, top_k=first.shape[1], hidden=1,
                intermediate=1,
            )  # fmt: skip
            spec = bare.at_dimensions(ModelSpec.find(dims))
        else:
            spec = given_model(model)
        spec, layers = numbered_layers(folder, "layer", files, spec, numbering)
        routes = np.empty((len(first), spec.layers, spec.top_k), np.int16)
        weights = np.empty(routes.shape, np.float16)
        for i, layer in enumerate(layers):
            ids = _lists(files[layer], "indices")
            expect_picks(files[layer], "indices", ids.shape[1], spec)
            scores = _lists(files[layer], "scores")
            for name, array in (("indices", ids), ("scores", scores)):
                if array.shape != routes[:, i].shape:
                    wanted = list(routes[:, i].shape)
                    raise FormatError(files[layer], name, f"expected {wanted} values, found {list(array.shape)}")
            routes[:, i] = expert_ids(files[layer], "indices", ids)
            weights[:, i] = scores
        length = request_tokens or _CONTEXT
        row = np.arange(len(routes))
        return Trace(
            spec,
            routes,
            weights,
            request=row // length,
            position=row % length,
            phase=np.full(len(row), phase_code(phase, PREFILL)),
            domains=(domain,),
            origin=origin_of(
                path,
                "flame",
                "FLAME-MoE",
                spec,
                origin,
                iteration=folder.name,
                phase="" if phase else "assumed prefill, as whole sequences are routed at once",
                requests="" if request_tokens else f"assumed to have {length} tokens each, the files do not say",
            ),
        )


def _iterations(folder: Path) -> dict[int, Path]:
    """Return the folders of iterations that hold layers, by number."""
    own = _ITERATION.fullmatch(folder.name)
    places = [folder] if own else [*folder.glob("actives/iter_*"), *folder.glob("iter_*")]
    return {
        int(match[1]): place
        for place in places
        if (match := _ITERATION.fullmatch(place.name))
        and place.is_dir()
        and any(_LAYER.fullmatch(file.name) for file in place.iterdir())
    }


def _iteration(folder: Path, wanted: int | None) -> Path:
    found = _iterations(folder) if folder.is_dir() else {}
    if not found:
        raise FormatError(folder, "", "expected actives/iter_N/layer_NN.parquet, found none")
    if wanted is None and len(found) > 1:
        raise FormatError(folder, "", f"holds iterations {', '.join(map(str, sorted(found)))}; choose with iteration=")
    chosen = next(iter(found)) if wanted is None else wanted
    if chosen not in found:
        raise FormatError(folder, "", f"has no iteration {chosen}; it holds {', '.join(map(str, sorted(found)))}")
    return found[chosen]


def _lists(path: Path, name: str) -> Array:
    """Return a column of equally long lists, [rows, length]."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            column = file.read(columns=[name]).column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        lengths = column.value_lengths() if hasattr(column, "value_lengths") else None
        flat = column.flatten().to_numpy(zero_copy_only=False)
    except (OSError, pa.ArrowException, KeyError, ValueError, AttributeError, TypeError, MemoryError) as error:
        raise FormatError(path, name, f"expected a column of lists, found {one_line(error)}") from None
    sizes: Array = np.unique(lengths.to_numpy(zero_copy_only=False)) if lengths is not None else np.empty(0)
    length = int(sizes[0]) if len(sizes) == 1 and np.isfinite(sizes[0]) else 0
    length = length or getattr(column.type, "list_size", 0)
    wanted = "iu" if name == "indices" else "f"
    if not length or len(sizes) > 1 or flat.dtype.kind not in wanted or len(flat) != length * len(column):
        raise FormatError(path, name, f"expected equally long lists of numbers, found {column.type}")
    return np.asarray(flat).reshape(-1, length)
