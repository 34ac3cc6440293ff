"""JSON lines of picks, as loggers of engines write them: ``{"layer": 3, "topk_ids": [5, 1], ...}``.

A line holds the ids of one token, or of several tokens one after the other (a list of lists). Where lines name no
request and position, the n-th token of every layer is the same token.

| key | also named | |
|---|---|---|
| ``layer`` | ``layer_id``, ``layer_idx`` | required |
| ``topk_ids`` | ``experts``, ``topk_idx`` | required |
| ``topk_weights`` | ``weights`` | gate weights, for all lines or none |
| ``request`` | ``req_id``, ``request_id`` | number or text |
| ``position`` | ``token_idx``, ``token`` | of the (first) token in its request |
| ``step``, ``domain``, ``phase`` | | of the token, on one of its lines or on all |
"""

from __future__ import annotations

from collections.abc import Mapping
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
    json_lines,
    origin_of,
    phase_code,
    problems_of,
)
from moesim.trace.formats.model import check_options, given_model, numbered_layers
from moesim.trace.trace import PHASES, PREFILL, Trace

_NAMES: Final = {
    "layer": ("layer", "layer_id", "layer_idx"),
    "ids": ("topk_ids", "experts", "topk_idx"),
    "weights": ("topk_weights", "weights"),
    "request": ("request", "req_id", "request_id"),
    "position": ("position", "token_idx", "token"),
}


def sniff(path: str | Path) -> bool:
    """Return whether the first line is an object with a layer and ids."""
    first = first_line(path)
    return _key(first, "layer") is not None and _key(first, "ids") is not None


def read(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    numbering: str | None = None,
    phase: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Trace:
    """Read picks from lines.

    Parameters
    ----------
    model
        The model that was recorded: name of a preset, its config.json, or a spec.
    numbering
        How layers are numbered, where they are not all there: decoder, decoder+1 or ordinal.
    phase
        Phase of the lines that name none; prefill if not given, and the origin says so.
    origin
        Facts to add to the origin.

    Raises
    ------
    FormatError
        If a line is damaged, a token occurs twice in a layer, or lines disagree in their tokens or in what a token is.
    """
    check_options(model=model, numbering=numbering, phase=phase, origin=origin)
    with problems_of(path):
        spec = given_model(model)
        lines = _Lines(path, spec, phase_code(phase, PREFILL))
        for place, record in json_lines(path):
            lines.add(place, record)
        if not lines.rows:
            raise FormatError(path, "", "expected lines with a layer and topk_ids, found none")
        if 0 < lines.stepped < len(lines.rows):
            raise FormatError(path, "step", "expected it for every token or for none")
        spec, layers = numbered_layers(path, "layer", lines.tokens_of, spec, numbering)
        silent = len(lines.rows) - lines.phased
        routes, weights = lines.arrays(layers)
        missing = int((routes[:, :, 0] < 0).sum())
        request, position = np.array(list(lines.rows)).T
        return Trace(
            spec,
            routes,
            weights,
            request=request,
            position=position,
            step=np.array(lines.step) if lines.stepped else request,
            phase=np.array(lines.phase),
            domain=np.array(lines.domain),
            domains=tuple(lines.domains),
            origin=origin_of(
                path,
                "jsonl",
                "unknown",
                spec,
                origin,
                missing=f"not recorded: {count(missing, 'pick')} of tokens in layers" if missing else "",
                phase=""
                if phase or not silent
                else f"assumed prefill, the file does not say it of {count(silent, 'token')}",
            ),
        )


def _key(record: Mapping[str, Any], what: str) -> str | None:
    return next((name for name in _NAMES[what] if name in record), None)


class _Lines:
    """Tokens found so far, in order of appearance."""

    def __init__(self, path: str | Path, spec: ModelSpec, phase: int) -> None:
        self.path, self.spec, self.default_phase = path, spec, phase
        self.rows: dict[tuple[int, int], int] = {}
        self.tokens_of: dict[int, int] = {}
        self.step: list[int] = []
        self.phase: list[int] = []
        self.domain: list[int] = []
        self.domains: dict[str, int] = {}
        self.stepped = self.phased = 0
        self.placed = False
        self._requests: dict[str, int] = {}
        self._next: dict[tuple[int, int], int] = {}
        self._cells: dict[tuple[int, int], tuple[Array, Array | None]] = {}

    def add(self, place: str, record: Mapping[str, Any]) -> None:
        path = self.path
        names = {what: _key(record, what) for what in _NAMES}
        if names["layer"] is None or names["ids"] is None:
            raise FormatError(path, place, "expected the keys layer and topk_ids, found one of them or none")
        layer = integer(path, place, record, names["layer"])
        ids = self._picks(f"{place}, {names['ids']}", record[names["ids"]])
        expect_picks(path, f"{place}, {names['ids']}", ids.shape[1], self.spec)
        weights = self._weights(place, record, names["weights"], ids)
        name = "" if names["request"] is None else str(record[names["request"]])
        request = self._requests.setdefault(name, len(self._requests))
        if names["position"] is None:
            first = self._next.get((layer, request), 0)
            self._next[layer, request] = first + len(ids)
        else:
            first = integer(path, place, record, names["position"])
            self.placed = True
        for i, pick in enumerate(expert_ids(path, place, ids)):
            row = self._row(place, record, request, first + i)
            if (row, layer) in self._cells:
                raise FormatError(path, place, f"token {first + i} occurs twice in layer {layer}; lines need a request")
            self._cells[row, layer] = (pick, None if weights is None else weights[i])
        self.tokens_of[layer] = self.tokens_of.get(layer, 0) + len(ids)

    def _picks(self, place: str, value: Any) -> Array:
        nested = isinstance(value, list) and value[:1] and isinstance(value[0], list)
        return integers(self.path, place, value if nested else [value], ("tokens", "picks"))

    def _weights(self, place: str, record: Mapping[str, Any], name: str | None, ids: Array) -> Array | None:
        if name is None:
            return None
        weights: Array
        try:
            weights = np.asarray(record[name], np.float64).reshape(-1, ids.shape[1])
        except (ValueError, TypeError, OverflowError):
            weights = np.empty(0)
        if weights.shape != ids.shape:
            raise FormatError(self.path, f"{place}, {name}", f"expected numbers of shape {list(ids.shape)}")
        return weights

    def _row(self, place: str, record: Mapping[str, Any], request: int, position: int) -> int:
        step, name = integer(self.path, place, record, "step", 0), record.get("phase")
        if name is not None and name not in PHASES:
            raise FormatError(self.path, f"{place}, phase", f"expected one of {', '.join(PHASES)}, found {name!r:.60}")
        phase = self.default_phase if name is None else PHASES.index(name)
        row = self.rows.setdefault((request, position), len(self.rows))
        if row == len(self.step):
            self.stepped += "step" in record
            self.phased += name is not None
            self.step.append(step)
            self.phase.append(phase)
            self.domain.append(self.domains.setdefault(str(record.get("domain", "unlabelled")), len(self.domains)))
            return row
        domain = self.domains.get(str(record.get("domain")), -1)
        for key, own, first in (
            ("step", step, self.step), ("phase", phase, self.phase), ("domain", domain, self.domain),
        ):  # fmt: skip
            if record.get(key) is not None and own != first[row]:
                found = f"token {position} has another {key} here than on its first line; correct one of them"
                raise FormatError(self.path, f"{place}, {key}", found)
        return row

    def arrays(self, layers: list[int]) -> tuple[Array, Array | None]:
        """Return ids and weights [tokens, layers, top_k]."""
        T = len(self.rows)
        if not self.placed:
            for layer in layers:
                if self.tokens_of[layer] != T:
                    there = self.tokens_of[layer]
                    raise FormatError(
                        self.path, f"layer {layer}", f"expected {count(T, 'token')} as in other layers, found {there}"
                    )
        routes = np.full((T, len(layers), self.spec.top_k), -1, np.int16)
        weights = np.zeros(routes.shape, np.float64)
        place_of = {layer: i for i, layer in enumerate(layers)}
        weighted = 0
        for (row, layer), (pick, gate) in self._cells.items():
            routes[row, place_of[layer]] = pick
            if gate is not None:
                weights[row, place_of[layer]] = gate
                weighted += 1
        if 0 < weighted < len(self._cells):
            raise FormatError(self.path, "topk_weights", "expected weights in every line or in none")
        return routes, weights if weighted else None
