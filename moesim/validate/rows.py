"""What a table of measurements becomes: cases that are scored, and rows that are not, each with its reason."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moesim.base.errors import FormatError

Row = dict[str, str]
"""One line of a CSV file, by column."""


@dataclass(frozen=True)
class Case:
    """One measured number beside what the model says.

    Attributes
    ----------
    table, role
        Table (or the part of one) and ``calibrate`` or ``holdout``.
    label
        Which row: shape, system, operation.
    measured, predicted, null
        Same unit: seconds, or a ratio. ``null`` is what the table's null predictor says.
    """

    table: str
    role: str
    label: str
    measured: float
    predicted: float
    null: float

    @property
    def error(self) -> float:
        """Relative error of the model."""
        return self.predicted / self.measured - 1

    @property
    def null_error(self) -> float:
        """Relative error of the null predictor."""
        return self.null / self.measured - 1


@dataclass(frozen=True)
class Skip:
    """A row that is not scored, and why."""

    table: str
    reason: str


Scorer = Callable[[Sequence[Row]], Iterator[Case | Skip]]
"""A table family: rows of its file to cases."""


def read(path: Path, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a CSV file.

    Raises
    ------
    FormatError
        If it is no CSV, a column is missing, or there is no row.
    """
    try:
        # a spreadsheet may put a byte order mark first
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            found = reader.fieldnames or []
            missing = [column for column in columns if column not in found]
            if missing:
                raise FormatError(str(path), "header", f"expected columns {missing}, found {list(found)}")
            rows = [{key: value or "" for key, value in row.items() if key} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(str(path), "", f"expected CSV in UTF-8: {error}") from None
    except OSError as error:
        raise FormatError(str(path), "", f"cannot be read: {error.strerror}") from None
    if not rows:
        raise FormatError(str(path), "", "expected at least one row")
    return rows


def role_of(row: Row) -> str:
    """Return the role of a row; what is not given to fit is held out."""
    return "calibrate" if row.get("role", "") == "calibrate" else "holdout"
