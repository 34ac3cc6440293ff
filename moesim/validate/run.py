"""Running the model against a folder of measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moesim.base.errors import FormatError, InputError, MoesimError, UnknownName
from moesim.validate.rows import Case, Row, Scorer, Skip, read
from moesim.validate.score import Result, result
from moesim.validate.tables import deepep, effects, fused, gemm, layers, megamoe, nccl, nvlink, published, wideep

_BROKEN: Final = (ValueError, KeyError, IndexError, ArithmeticError, MoesimError)
"""What a scorer may stumble over in a row that is not what it should be."""
_SHOWN: Final = 5


@dataclass(frozen=True)
class Family:
    """How the rows of one file are scored, and the columns that this needs."""

    scorer: Scorer
    columns: tuple[str, ...]


FAMILIES: Final[dict[str, Family]] = {
    "alltoall_published": Family(published.published, published.COLUMNS),
    "deepep_ll_single_node": Family(deepep.low_latency, deepep.LOW_LATENCY_COLUMNS),
    "deepep_normal_single_node": Family(deepep.normal, deepep.NORMAL_COLUMNS),
    "nccl_single_node": Family(nccl.collectives, nccl.COLUMNS),
    "alltoall_gb200_trtllm": Family(nvlink.one_sided, nvlink.COLUMNS),
    "megamoe_layer_gb200": Family(megamoe.megamoe, megamoe.COLUMNS),
    "wideep_expert_compute": Family(wideep.wideep, wideep.COLUMNS),
    "grouped_gemm_deepgemm": Family(gemm.grouped, gemm.GROUPED_COLUMNS),
    "deepgemm_readme": Family(gemm.readme, gemm.README_COLUMNS),
    "fused_moe_hopper": Family(fused.fused, fused.COLUMNS),
    "moe_layer_end_to_end": Family(layers.layers, layers.COLUMNS),
    "balance_effects": Family(effects.effects, effects.COLUMNS),
}
"""Table families by the name of their file."""


def validate(folder: str | Path, tables: Collection[str] = (), progress: Callable[[str], None] | None = None) -> Result:
    """Compare the model with every measured row of a folder that it can score.

    Parameters
    ----------
    folder
        Folder of CSV files, one a table, named as in ``FAMILIES``; files of other names are left alone.
    tables
        Only these tables; empty: all that are there.
    progress
        Called with a line before each table.

    Raises
    ------
    UnknownName
        If a table is none of ``FAMILIES``.
    InputError
        If the folder does not exist or holds none of the tables.
    FormatError
        If a file that is asked for by name, or the only one there, cannot be read. Otherwise it is left out, as a row
        is that holds text or a negative number where none belongs; both are counted among what is skipped.
    """
    where = Path(folder)
    for name in tables:
        if name not in FAMILIES:
            raise UnknownName("table", name, FAMILIES)
    files = {name: where / f"{name}.csv" for name in FAMILIES if not tables or name in tables}
    present = {name: path for name, path in files.items() if path.is_file()}
    if not present:
        raise InputError(f"{where}: none of {', '.join(f'{name}.csv' for name in files)} is there; name their folder")
    found: list[Case | Skip] = []
    for name, path in present.items():
        family = FAMILIES[name]
        if progress:
            progress(f"scoring {name}")
        try:
            rows = read(path, family.columns)
        except FormatError as error:
            if name in tables or len(present) == 1:
                raise
            found.append(Skip(name, f"whole file: {error}"))
            continue
        found.extend(_score(name, family, rows))
    if not any(isinstance(item, Case) for item in found):
        reasons = sorted({f"{item.table}: {item.reason}" for item in found if isinstance(item, Skip)})
        raise InputError(f"{where}: no row can be scored; {'; '.join(reasons[:_SHOWN])}")
    return result(found)


def _score(name: str, family: Family, rows: list[Row]) -> list[Case | Skip]:
    """Score a table; rows that break the scorer are left out and named by their line, the header being line 1."""
    skipped: list[Case | Skip] = []
    good = []
    for line, row in enumerate(rows, start=2):
        # the tables of effects give changes in percent under "value"
        below = [column for column in family.columns if column != "value" and _negative(row[column])]
        if below:
            skipped.append(Skip(name, f"line {line}: {below[0]} is negative: {row[below[0]]}"))
        else:
            good.append((line, row))
    try:
        scored = list(family.scorer([row for _, row in good]))
    except _BROKEN:
        # a scorer stops at the first broken row and compares rows, so each is tried alone and the good ones together
        kept = []
        for line, row in good:
            try:
                list(family.scorer([row]))
            except _BROKEN as error:
                what = f"unknown value {error}" if isinstance(error, KeyError) else str(error)
                skipped.append(Skip(name, f"line {line}: {what}"))
            else:
                kept.append(row)
        scored = list(family.scorer(kept))
    for item in scored:
        if isinstance(item, Case) and not all(_counts(v) for v in (item.measured, item.predicted, item.null)):
            item = Skip(
                item.table,
                f"{item.label}: measured {item.measured:g}, predicted {item.predicted:g}, expected both above zero",
            )
        skipped.append(item)
    return skipped


def _negative(text: str) -> bool:
    try:
        return float(text) < 0
    except ValueError:
        return False


def _counts(value: float) -> bool:
    return math.isfinite(value) and value > 0
