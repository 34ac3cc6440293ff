"""SGLang's expert distribution recorder, mode ``per_token``: the slots of every token, pass by pass.

One file a rank; each record has ``forward_pass_id``, ``forward_mode``, ``positions``, ``extend_seq_lens`` and
``topk_ids_of_layer`` int32 [decoder layers, tokens, 8], padded with -1: physical slots, mapped back to logical experts
here. It knows no requests and no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import FormatError
from moesim.base.units import count
from moesim.spec import ModelSpec
from moesim.trace.formats.common import (
    expert_ids,
    integer,
    integers,
    join,
    origin_of,
    phase_code,
    problems_of,
)
from moesim.trace.formats.model import check_options, given_model
from moesim.trace.formats.sglang_ranks import MAP_NOTE, RankRecords, read_ranks, sniff_names
from moesim.trace.trace import DECODE, PREFILL, Trace

_EXTEND, _DECODE, _MIXED, _IDLE, _VERIFY = 1, 2, 3, 4, 5
_MODES: Final = (_EXTEND, _DECODE, _MIXED, _IDLE, _VERIFY)


def sniff(path: str | Path) -> bool:
    """Return whether the file (or folder of rank files) holds the slots of tokens."""
    return b"topk_ids_of_layer" in sniff_names(path)


def parts(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    phase: str | None = None,
    domain: str = "unlabelled",
    origin: Mapping[str, Any] | None = None,
) -> Iterator[Trace]:
    """Yield the tokens of every pass and rank, in order of passes; see `read`."""
    check_options(model=model, phase=phase, domain=domain, origin=origin)
    with problems_of(path):
        spec = given_model(model)
        ranks = read_ranks(path, spec)
        given = phase_code(phase, -1)
        kept = _distinct(ranks)
        alike = len(kept) < len(ranks)
        who = f"all {len(ranks)}" if len(kept) == 1 else f"some of {len(ranks)}"
        few = "one is" if len(kept) == 1 else f"{len(kept)} that differ are"
        facts = origin_of(
            path,
            "sglang-token",
            "SGLang's expert distribution recorder",
            spec,
            origin,
            ids=MAP_NOTE,
            requests="not recorded: each prompt of a pass and each decoded token counts as a request of its own",
            ranks=f"{who} recorded the same tokens, {few} kept" if alike else len(ranks),
        )
        records = [(part, number) for part in kept for number in range(len(part.records))]
        order = sorted(records, key=lambda entry: _pass(*entry))
        requests = 0
        for part, number in order:
            columns = _tokens(part, number, spec, given)
            if len(columns["routes"]) == 0:
                continue
            columns["request"] += requests
            requests = int(columns["request"].max()) + 1
            columns["source"] = np.full(len(columns["routes"]), -1 if alike else part.rank)
            yield Trace(spec, **columns, domains=(domain,), origin=facts)


def read(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    phase: str | None = None,
    domain: str = "unlabelled",
    origin: Mapping[str, Any] | None = None,
) -> Trace:
    """Read the tokens of all ranks.

    Parameters
    ----------
    path
        The file of a rank (those of the other ranks beside it are read too), or their folder.
    model
        The model that was served: name of a preset, its config.json, or a spec.
    phase
        Phase of all tokens, where the recorded mode is not to be believed.
    domain
        Name of what was served.
    origin
        Facts to add to the origin.

    Raises
    ------
    FormatError
        If a file is not such a recording, one of a rank is missing, or they do not fit the model.
    """
    return join(path, parts(path, model=model, phase=phase, domain=domain, origin=origin))


def _pass(part: RankRecords, number: int) -> tuple[int, int, int]:
    step = integer(part.path, f"records.{number}", part.records[number], "forward_pass_id")
    return step, part.rank, number


def _distinct(ranks: list[RankRecords]) -> list[RankRecords]:
    """Return the ranks that recorded other tokens than those before them.

    All record the same without data-parallel attention, and those of a group that shares attention do with it. Ranks
    without a token are kept: that they are alike says nothing.
    """
    seen: list[list[tuple[Any, Any, Any]]] = []
    kept = []
    for part in ranks:
        content = [_content(record) for record in part.records]
        if content in seen:
            continue
        if any(tokens for _, tokens, _ in content):
            seen.append(content)
        kept.append(part)
    return kept


def _content(record: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return pass, tokens and positions of a record as plain values."""
    values = [record.get(key) for key in ("forward_pass_id", "input_ids", "positions")]
    first, second, third = (value.tolist() if isinstance(value, np.ndarray) else value for value in values)
    return first, second, third


def _tokens(part: RankRecords, number: int, spec: ModelSpec, given: int) -> dict[str, Array]:
    """Return the columns of one record, with requests counted from 0."""
    path, place, record = part.path, f"records.{number}", part.records[number]
    mode = integer(path, place, record, "forward_mode")
    if mode not in _MODES and given < 0:
        raise FormatError(path, f"{place}, forward_mode", f"expected one of {_MODES}, found {mode}; give phase=")
    slots = integers(
        path, f"{place}, topk_ids_of_layer", record.get("topk_ids_of_layer"), ("decoder layers", "tokens", "picks")
    )
    if len(slots) != part.recorded:
        found = f"found {len(slots)}; record again"
        raise FormatError(
            path, f"{place}, topk_ids_of_layer", f"expected {count(part.recorded, 'layer')} as the map, {found}"
        )
    routes = _logical(part, f"{place}, topk_ids_of_layer", slots[part.rows], spec)
    T = len(routes)
    positions = integers(path, f"{place}, positions", record.get("positions", []), ("tokens",))
    if len(positions) != T:
        raise FormatError(
            path, f"{place}, positions", f"expected {T} positions as there are tokens, found {len(positions)}"
        )
    lengths = record.get("extend_seq_lens")
    if mode in (_EXTEND, _MIXED) and lengths is not None:
        sizes = integers(path, f"{place}, extend_seq_lens", lengths, ("sequences",))
        if sizes.min(initial=0) < 0 or sizes.sum() != T:
            raise FormatError(path, f"{place}, extend_seq_lens", f"expected lengths of {count(T, 'token')} in all")
        request = np.repeat(np.arange(len(sizes)), sizes)
        # in a mixed pass, sequences that grow by one token behind their start are decoded
        decoded = (np.repeat(sizes, sizes) == 1) & (positions > 0) & (mode == _MIXED)
        phase = np.where(decoded, DECODE, PREFILL)
    else:
        request = np.arange(T)
        phase = np.full(T, PREFILL if mode == _EXTEND else DECODE)
    return {
        "routes": routes,
        "step": np.full(T, integer(path, place, record, "forward_pass_id")),
        "request": request,
        "position": positions.astype(np.int64),
        "phase": phase if given < 0 else np.full(T, given),
    }


def _logical(part: RankRecords, place: str, slots: Array, spec: ModelSpec) -> Array:
    """Return logical ids int16 [tokens, layers, top_k] of slots [layers, tokens, picks]."""
    known = part.experts.shape[1]
    if slots.size and (slots.min() < -1 or slots.max() >= known):
        raise FormatError(part.path, place, f"expected slots -1..{known - 1}, found {slots.min()}..{slots.max()}")
    picks = slots.shape[2]
    if picks < spec.top_k or (slots[..., spec.top_k :] >= 0).any():
        raise FormatError(
            part.path,
            place,
            f"expected {count(spec.top_k, 'pick')} a token as in {spec.name}, found {picks}; give another model=",
        )
    slots = slots[..., : spec.top_k]
    layer = np.arange(spec.layers)[:, None, None]
    experts = np.where(slots >= 0, part.experts[layer, np.maximum(slots, 0)], -1)
    return expert_ids(part.path, place, experts.transpose(1, 0, 2))
