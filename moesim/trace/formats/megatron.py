"""Megatron-LM's router trace: ``router_trace_rank{r}.jsonl``, one line a (step, block, layer).

``{"step", "stage", "block", "layer", "rank", "num_tokens", "topk", "top_indices": [[ids] a token], ...}`` with logical
ids. Lines of one step and layer are micro-batches, one after the other. Layers of other blocks (``mtp``) are left out.
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
    first_line,
    integer,
    integers,
    join,
    json_lines,
    origin_of,
    phase_code,
    problems_of,
)
from moesim.trace.formats.model import check_options, given_model, numbered_layers
from moesim.trace.trace import TRAIN, Trace

_RANK_FILE: Final = re.compile(r"router_trace_rank(\d+)\.jsonl")
_Step = tuple[int, dict[int, Array]]
"""A step and the ids [tokens, top_k] of each of its layers, by number."""


def sniff(path: str | Path) -> bool:
    """Return whether this is a router trace, or a folder of them."""
    files = _files(path)
    return bool(files) and {"top_indices", "layer", "step"} <= set(first_line(files[0], 1 << 26))


def parts(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    numbering: str | None = None,
    phase: str | None = None,
    domain: str = "unlabelled",
    origin: Mapping[str, Any] | None = None,
) -> Iterator[Trace]:
    """Yield the tokens of every step and rank, in order; see `read`."""
    check_options(model=model, numbering=numbering, phase=phase, domain=domain, origin=origin)
    with problems_of(path):
        spec = given_model(model)
        code = phase_code(phase, TRAIN)
        files = _files(path)
        if not files:
            raise FormatError(path, "", "expected router_trace_rank0.jsonl, ..., found none; give the folder of them")
        streams = [_steps(file, spec) for file in files]
        heads = [next(stream, None) for stream in streams]
        for file, first in zip(files, heads, strict=True):
            if first is None:
                raise FormatError(file, "", "expected lines of the block 'decoder', found none")
        stages = _stages(path, files, heads)
        numbers = [layer for stage in stages for layer in heads[stage[0]][1]]  # type: ignore[index]
        spec, layers = numbered_layers(path, "layer", numbers, spec, numbering)
        alike = len(files) - sum(len(stage) for stage in stages)
        facts = origin_of(
            path,
            "megatron",
            "Megatron-LM's router trace",
            spec,
            origin,
            ranks=len(files),
            alike=f"left out, as others routed the same tokens: {count(alike, 'rank')}" if alike else "",
            phase="" if phase else "assumed train, the files do not say",
            requests="not recorded: the tokens of a rank in a step count as one request",
            stages=f"{len(stages)} pipeline stages, their ranks paired in order" if len(stages) > 1 else "",
        )
        request = 0
        while any(found is not None for found in heads):
            if (late := next((i for i, found in enumerate(heads) if found is None), None)) is not None:
                raise FormatError(files[late], "", "ends some steps before the file of another rank; copy it again")
            step = heads[0][0]  # type: ignore[index]
            for source, group in enumerate(zip(*stages, strict=True)):
                routes = _routes(files, heads, group, step, layers)
                yield Trace(
                    spec,
                    routes,
                    step=np.full(len(routes), step),
                    request=np.full(len(routes), request),
                    source=np.full(len(routes), source),
                    phase=np.full(len(routes), code),
                    domains=(domain,),
                    origin=facts,
                )
                request += 1
            heads = [next(stream, None) for stream in streams]


def read(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    numbering: str | None = None,
    phase: str | None = None,
    domain: str = "unlabelled",
    origin: Mapping[str, Any] | None = None,
) -> Trace:
    """Read the tokens of all ranks.

    Parameters
    ----------
    path
        The folder of the files of all ranks, or one file.
    model
        The model that was trained: name of a preset, its config.json, or a spec.
    numbering
        How layers are numbered, where they are not all there: decoder, decoder+1 or ordinal.
    phase
        Phase of all tokens; train if not given.
    domain
        Name of what was trained on.
    origin
        Facts to add to the origin.

    Raises
    ------
    FormatError
        If a line is damaged, layers or ranks disagree, or they do not fit the model.
    """
    given = parts(path, model=model, numbering=numbering, phase=phase, domain=domain, origin=origin)
    return join(path, given)


def _files(path: str | Path) -> list[Path]:
    given = Path(path)
    if not given.is_dir():
        return [given]
    found = {int(m[1]): file for file in given.iterdir() if (m := _RANK_FILE.fullmatch(file.name))}
    return [found[rank] for rank in sorted(found)]


def _steps(path: Path, spec: ModelSpec) -> Iterator[_Step]:
    """Yield the steps of a rank; nothing but one step is held in memory."""
    step, layers = -1, dict[int, list[Array]]()
    for place, record in json_lines(path):
        if record.get("block", "decoder") != "decoder":
            continue
        number, layer = (integer(path, place, record, key) for key in ("step", "layer"))
        if number < step:
            raise FormatError(path, f"{place}, step", f"expected steps in order, found {number} behind {step}")
        if number > step and layers:
            yield step, _joined(layers)
            layers = {}
        step = number
        ids = integers(path, f"{place}, top_indices", record.get("top_indices"), ("tokens", "picks"))
        expect_picks(path, f"{place}, top_indices", ids.shape[1], spec)
        if record.get("num_tokens", len(ids)) != len(ids):
            raise FormatError(
                path, f"{place}, num_tokens", f"says {record['num_tokens']!r:.60}, but there are {len(ids)}"
            )
        layers.setdefault(layer, []).append(expert_ids(path, f"{place}, top_indices", ids))
    if layers:
        yield step, _joined(layers)


def _joined(layers: Mapping[int, list[Array]]) -> dict[int, Array]:
    return {layer: np.concatenate(blocks) for layer, blocks in layers.items()}


def _stages(path: str | Path, files: list[Path], heads: list[_Step | None]) -> list[list[int]]:
    """Return the ranks of every pipeline stage: those that hold the same layers, of the same tokens only the first."""
    stages: dict[tuple[int, ...], list[int]] = {}
    for rank, found in enumerate(heads):
        layers = found[1] if found else {}
        ranks = stages.setdefault(tuple(sorted(layers)), [])
        if not any(_alike(layers, heads[other]) for other in ranks):
            ranks.append(rank)
    held = [layer for layers in stages for layer in layers]
    if len(set(held)) != len(held) or len({len(ranks) for ranks in stages.values()}) != 1:
        names = f"{files[0].name} and others"
        raise FormatError(path, "layer", f"the ranks hold neither the same layers nor those of stages ({names})")
    return list(stages.values())


def _alike(layers: Mapping[int, Array], other: _Step | None) -> bool:
    """Return whether two ranks, as those of one tensor-parallel group, routed the same tokens in their first step."""
    return other is not None and all(
        len(ids) > 0 and np.array_equal(ids, other[1].get(layer, ())) for layer, ids in layers.items()
    )


def _routes(
    files: list[Path], heads: list[_Step | None], group: tuple[int, ...], step: int, layers: list[int]
) -> Array:
    """Return ids [tokens, layers, top_k] of the ranks that hold the layers of the same tokens."""
    held: dict[int, Array] = {}
    for rank in group:
        found = heads[rank]
        if found is None or found[0] != step:
            raise FormatError(files[rank], f"step {step}", "expected this step as in the other files, found another")
        held |= found[1]
    tokens = len(next(iter(held.values())))
    for layer in layers:
        if layer not in held or len(held[layer]) != tokens:
            there = len(held.get(layer, ()))
            raise FormatError(
                files[group[0]],
                f"step {step}, layer {layer}",
                f"expected {count(tokens, 'token')} as in others, found {there}",
            )
    if foreign := sorted(set(held) - set(layers)):
        raise FormatError(files[group[0]], f"step {step}", f"layer {foreign[0]} occurs in no step before")
    return np.stack([held[layer] for layer in layers], axis=1)
