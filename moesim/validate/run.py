"""Running the model against a folder of measurements."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moesim.base.errors import FormatError, InputError, UnknownName
from moesim.validate.rows import Case, Scorer, Skip, read
from moesim.validate.score import Result, result
from moesim.validate.tables import deepep, effects, fused, gemm, layers, megamoe, nccl, nvlink, published, wideep


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
        If a file lacks a column, or holds text where a number belongs.
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
        rows = read(path, family.columns)
        try:
            found.extend(family.scorer(rows))
        except ValueError as error:
            raise FormatError(path, "a row", f"expected numbers where numbers belong: {error}") from None
    return result(found)
