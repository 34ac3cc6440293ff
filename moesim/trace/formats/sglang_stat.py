"""SGLang's expert distribution recorder, modes ``stat`` and ``stat_approx``: counts of logical experts.

``torch.save`` of ``{"rank", "logical_count": int32 [slots, decoder layers, experts], ...}``, written by rank 0 and
already summed over ranks; or the same as JSON, which SGLang reads back as ``--init-expert-location``. The slots are
those of a ring buffer: unused ones are zero, and their order is not that of time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moesim.base.errors import FormatError
from moesim.base.units import count
from moesim.spec import ModelSpec
from moesim.trace.formats import torch_file
from moesim.trace.formats.common import (
    head,
    integers,
    origin_of,
    parse_json,
    phase_code,
    problems_of,
    read_text,
)
from moesim.trace.formats.model import check_options, given_model, moe_part
from moesim.trace.trace import PREFILL, Trace


def sniff(path: str | Path) -> bool:
    """Return whether the file holds SGLang's ``logical_count``."""
    start = head(path).lstrip()
    if start.startswith(b"{"):
        return b'"logical_count"' in start
    return b"logical_count" in torch_file.pickled_names(path)


def read(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    phase: str | None = None,
    domain: str = "unlabelled",
    origin: Mapping[str, Any] | None = None,
) -> Trace:
    """Read the counts of a dump.

    Parameters
    ----------
    model
        The model that was served: name of a preset, its config.json, or a spec.
    phase
        Phase of all of it; the dump mixes them, prefill if not given, and the origin says so.
    domain
        Name of what was served.
    origin
        Facts to add to the origin.

    Raises
    ------
    FormatError
        If the file is not such a dump or does not fit the model.
    """
    check_options(model=model, phase=phase, domain=domain, origin=origin)
    text = head(path).lstrip().startswith(b"{")
    data = parse_json(path, "", read_text(path)) if text else torch_file.load(path)
    if not isinstance(data, dict) or "logical_count" not in data:
        raise FormatError(path, "", "expected logical_count of SGLang's recorder in mode stat, found none")
    counts = integers(path, "logical_count", _stacked(data["logical_count"]), ("slots", "decoder layers", "experts"))
    with problems_of(path):
        spec = given_model(model)
        if counts.shape[2] != spec.experts:
            raise FormatError(
                path,
                "logical_count",
                f"expected {count(spec.experts, 'expert')} as in {spec.name}, found {counts.shape[2]}",
            )
        counts = moe_part(path, "logical_count", counts, spec).astype(np.int64)
        used = counts.any(axis=(1, 2))
        if not used.any():
            raise FormatError(path, "logical_count", "expected counts, found zeros only; record while requests run")
        counts = counts[used]
        return Trace(
            spec,
            given_counts=counts,
            phase=np.full(len(counts), phase_code(phase, PREFILL)),
            domains=(domain,),
            origin=origin_of(
                path,
                "sglang-stat",
                "SGLang's expert distribution recorder",
                spec,
                origin,
                steps="slots of a ring buffer, in no order of time",
                phase="" if phase else "assumed prefill, the file mixes phases",
            ),
        )


def _stacked(counts: Any) -> Any:
    """Return counts with an axis of slots, where they are one matrix without it."""
    if isinstance(counts, np.ndarray):
        return counts[None] if counts.ndim == 2 else counts
    row = counts[0] if isinstance(counts, list) and counts else None
    return [counts] if isinstance(row, list) and not any(isinstance(item, list) for item in row) else counts
