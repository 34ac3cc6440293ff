"""SGLang's expert distribution recorder, mode ``per_pass``: counts of physical slots, pass by pass.

One file a rank; each record has ``forward_pass_id`` and ``global_physical_count`` int32 [decoder layers, slots], which
are summed over ranks and mapped back to logical experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import FormatError
from moesim.spec import ModelSpec
from moesim.trace.formats.common import integer, integers, origin_of, phase_code, problems_of
from moesim.trace.formats.model import check_options, given_model
from moesim.trace.formats.sglang_ranks import MAP_NOTE, RankRecords, read_ranks, sniff_names
from moesim.trace.trace import PREFILL, Trace


def sniff(path: str | Path) -> bool:
    """Return whether the file (or folder of rank files) holds physical counts and no ids of tokens."""
    names = sniff_names(path)
    # where no pass was recorded the map is there alone
    return b"last_physical_to_logical_map" in names and b"topk_ids_of_layer" not in names


def read(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    phase: str | None = None,
    domain: str = "unlabelled",
    origin: Mapping[str, Any] | None = None,
) -> Trace:
    """Read the counts of every pass, summed over ranks.

    Parameters
    ----------
    path
        The file of a rank (those of the other ranks beside it are read too), or their folder.
    model, phase, domain, origin
        As for `moesim.trace.formats.sglang_stat`.

    Raises
    ------
    FormatError
        If a file is not such a recording, one of a rank is missing, or they do not fit the model.
    """
    check_options(model=model, phase=phase, domain=domain, origin=origin)
    with problems_of(path):
        spec = given_model(model)
        passes: dict[int, Array] = {}
        ranks = read_ranks(path, spec)
        for part in ranks:
            for number, record in enumerate(part.records):
                place = f"records.{number}"
                step = integer(part.path, place, record, "forward_pass_id")
                passes[step] = passes.get(step, 0) + _logical(part, place, record, spec)
        if not passes:
            raise FormatError(path, "records", "expected passes, found none; record while requests run")
        steps = sorted(passes)
        return Trace(
            spec,
            given_counts=np.stack([passes[step] for step in steps]),
            step=np.array(steps),
            phase=np.full(len(steps), phase_code(phase, PREFILL)),
            domains=(domain,),
            origin=origin_of(
                path,
                "sglang-pass",
                "SGLang's expert distribution recorder",
                spec,
                origin,
                ranks=len(ranks),
                ids=MAP_NOTE,
                phase="" if phase else "assumed prefill, the file does not say",
            ),
        )


def _logical(part: RankRecords, place: str, record: Mapping[str, Any], spec: ModelSpec) -> Array:
    """Return the picks of each logical expert in one record, int64 [layers, experts]."""
    place = f"{place}, global_physical_count"
    counts = integers(part.path, place, record.get("global_physical_count"), ("decoder layers", "slots"))
    slots = part.experts.shape[1]
    if counts.shape != (part.recorded, slots):
        wanted = f"[{part.recorded}, {slots}] as the map"
        raise FormatError(part.path, place, f"expected {wanted}, found {list(counts.shape)}")
    if counts.min(initial=0) < 0:
        raise FormatError(part.path, place, "expected counts from 0 up, found a negative one")
    logical = np.zeros((spec.layers, spec.experts), np.int64)
    np.add.at(logical, (np.arange(spec.layers)[:, None], part.experts), counts[part.rows])
    return logical
