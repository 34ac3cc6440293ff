"""What the modes ``per_pass`` and ``per_token`` of SGLang's recorder share: rank files and their map.

Both write one file a rank, ``..._{time}_{rank}.pt``, with ``{"records": [...], "last_physical_to_logical_map": int
[decoder layers, slots]}``. Their ids are physical: slots of the placement that was loaded, never experts.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import FormatError
from moesim.spec import ModelSpec
from moesim.trace.formats import torch_file
from moesim.trace.formats.common import integers
from moesim.trace.formats.model import moe_rows

_RANK_FILE: Final = re.compile(r"(?P<stem>.*?)_?(?P<time>\d{1,15}(?:\.\d{1,9})?)_(?P<rank>\d{1,6})\.pt")
_ONE_RUN_S: Final = 60.0
"""Most seconds between the times in the names of two files of a run."""
MAP_NOTE: Final = "physical ids were mapped back through the last map of the file, taken to hold for all of it"


@dataclass(frozen=True, eq=False)
class RankRecords:
    """Records of one rank, and the map of its slots.

    Parameters
    ----------
    path
        The file.
    rank
        Rank that wrote it.
    records
        As in the file.
    experts
        Logical expert of every slot of every MoE layer, int64 [layers, slots].
    recorded
        Layers of every array in the records.
    rows
        Which of them are MoE layers.
    """

    path: Path
    rank: int
    records: list[dict[str, Any]]
    experts: Array
    recorded: int
    rows: list[int]


def rank_files(path: str | Path) -> list[Path]:
    """Return the files of all ranks of a run, in order of rank: given any of them, or the folder they are in.

    Raises
    ------
    FormatError
        If a folder holds several runs, or a rank is missing.
    """
    given = Path(path)
    runs = _runs(given if given.is_dir() else given.parent)
    if given.is_dir():
        if len(runs) != 1:
            raise FormatError(given, "", f"expected the rank files of one run, found {len(runs)} runs; give one file")
        by_rank = runs[0]
    else:
        by_rank = next((run for run in runs if given in run.values()), {})
        if not by_rank:
            return [given]
    if missing := sorted(set(range(max(by_rank) + 1)) - set(by_rank)):
        raise FormatError(
            given, "", f"the file of rank {missing[0]} is missing beside those of ranks {sorted(by_rank)}"
        )
    return [by_rank[rank] for rank in sorted(by_rank)]


def _runs(folder: Path) -> list[dict[int, Path]]:
    """Return the runs in a folder, files by rank.

    Every rank puts its own clock into the name, so the times of a run differ: it ends where a rank comes again, or
    nothing comes for a while.
    """
    timed = []
    for file in folder.glob("*.pt"):
        if match := _RANK_FILE.fullmatch(file.name):
            timed.append((match["stem"], float(match["time"]), int(match["rank"]), file))
    runs: list[dict[int, Path]] = []
    last = ("", -math.inf)
    for stem, seconds, rank, file in sorted(timed):
        if not runs or stem != last[0] or rank in runs[-1] or seconds - last[1] > _ONE_RUN_S:
            runs.append({})
        runs[-1][rank] = file
        last = (stem, seconds)
    return runs


def sniff_names(path: str | Path) -> bytes:
    """Return the names in a file, or in the first file of a folder; empty where there is none."""
    file = next(iter(sorted(Path(path).glob("*.pt"))), None) if Path(path).is_dir() else Path(path)
    return torch_file.pickled_names(file) if file else b""


def read_ranks(path: str | Path, spec: ModelSpec) -> list[RankRecords]:
    """Read the records of all ranks of a run.

    Raises
    ------
    FormatError
        If a file is not such a recording, does not fit the model, or ranks loaded different maps.
    """
    ranks: list[RankRecords] = []
    for file in rank_files(path):
        found = _read(file, len(ranks), spec)
        if ranks and not np.array_equal(found.experts, ranks[0].experts):
            raise FormatError(
                file, "last_physical_to_logical_map", f"differs from that of {ranks[0].path.name}; record again"
            )
        ranks.append(found)
    return ranks


def _read(path: Path, rank: int, spec: ModelSpec) -> RankRecords:
    data = torch_file.load(path)
    place = "last_physical_to_logical_map"
    if not isinstance(data, dict) or not isinstance(data.get("records"), list) or place not in data:
        raise FormatError(path, "", f"expected records and {place} of SGLang's recorder, found neither or one of them")
    slots = integers(path, place, data[place], ("decoder layers", "slots"))
    rows = moe_rows(path, place, len(slots), spec)
    experts = slots[rows].astype(np.int64)
    if experts.size and (experts.min() < 0 or experts.max() >= spec.experts):
        raise FormatError(
            path, place, f"expected experts 0..{spec.experts - 1}, found {experts.min()}..{experts.max()}"
        )
    for layer, row in enumerate(experts):
        if len(held := np.unique(row)) < spec.experts:
            lost = int(np.setdiff1d(np.arange(spec.experts), held)[0])
            raise FormatError(path, place, f"no slot of decoder layer {spec.layer_ids[layer]} holds expert {lost}")
    records = data["records"]
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise FormatError(path, f"records.{number}", f"expected a record, found {type(record).__name__}")
    primary = [record for record in records if record.get("gatherer_key", "primary") == "primary"]
    return RankRecords(path, rank, primary, experts, len(slots), rows)
