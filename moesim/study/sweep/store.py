"""Rows on disk: one Parquet file a point, written when the point is done; one table at the end.

A row that is on disk is complete (files are renamed into place) and is never computed again. What differs from run
to run, the seconds that a point took, lies beside the row and stays out of the table, so that the table is the same
bytes however it was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from moesim.base.errors import InputError
from moesim.base.files import atomic_path
from moesim.study.sweep.kinds import Row, hiding

_ROWS: Final = "rows"
TABLE: Final = "table.parquet"
TIMINGS: Final = "timings.parquet"


class Store:
    """The folder of a sweep.

    Parameters
    ----------
    folder
        Made if it does not exist, within an existing one.

    Raises
    ------
    InputError
        If it cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            (self.folder / _ROWS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot write there: {error.strerror}; choose another folder") from None

    def path(self, identity: str) -> Path:
        """Return the file of a point."""
        return self.folder / _ROWS / f"{identity}.parquet"

    def write(self, identity: str, row: Row, wall_s: float) -> None:
        """Write the row of a point, atomically."""
        table = pa.Table.from_pylist([row]).replace_schema_metadata({"wall_s": repr(wall_s)})
        with atomic_path(self.path(identity)) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def done(self, identities: Iterable[str]) -> set[str]:
        """Return which of these points are on disk."""
        there = {path.stem for path in (self.folder / _ROWS).glob("*.parquet")}
        return there & set(identities)

    def read(self, identity: str) -> tuple[Row, float]:
        """Return the row of a point and the seconds that it took.

        Raises
        ------
        InputError
            If the file was damaged from outside.
        """
        path = self.path(identity)
        try:
            table = pq.read_table(path)
            return table.to_pylist()[0], float((table.schema.metadata or {})[b"wall_s"])
        except (OSError, pa.ArrowInvalid, IndexError, KeyError, ValueError) as error:
            raise InputError(f"{path}: no row of a sweep ({error}); delete it and run again") from None

    def finish(self, identities: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Write the table of all points, in their order, and what each took; return the rows.

        Parameters
        ----------
        identities, settings
            Of every point; settings become the first columns.

        Raises
        ------
        InputError
            If a row was damaged from outside, or a result would hide a setting.
        """
        rows, walls = [], []
        for number, (identity, given) in enumerate(zip(identities, settings, strict=True)):
            row, wall_s = self.read(identity)
            if hidden := [name for name in hiding(row, given) if name != "status"]:
                raise InputError(
                    f"{self.path(identity)}: holds results named like a setting ({', '.join(hidden)}), as an older "
                    "moesim wrote them; delete it and run again"
                )
            rows.append({"point": number, **{key: plain(value) for key, value in given.items()}, **row})
            walls.append({"point": number, "id": identity, "wall_s": wall_s})
        write_rows(self.folder / TABLE, rows)
        write_rows(self.folder / TIMINGS, walls)
        return rows


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as one Parquet table, atomically; a row without a column has nothing there."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    data = {column: _column([row.get(column) for row in rows]) for column in columns}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(data), temporary, compression="zstd")


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and kinds:
        whole = kinds == {int}
        return pa.array(values if whole else [None if v is None else float(v) for v in values])
    if kinds == {bool}:
        return pa.array(values)
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def plain(value: Any) -> Any:
    """Return a setting as a cell: lists and tables as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(str(plain(item)) for item in value)
    return value
