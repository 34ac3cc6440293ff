"""A table for spreadsheets and scripts: CSV with the columns layer, rank, slot and expert.

One line a slot, layers counted from 0 over MoE layers only, expert -1 in an empty slot.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Final

import numpy as np

from moesim.base.errors import FormatError, InputError
from moesim.base.files import write_text
from moesim.base.units import count
from moesim.placement.placement import Placement
from moesim.spec import ModelSpec

COLUMNS: Final = ("layer", "rank", "slot", "expert")


def sniff(path: Path) -> bool:
    """Return whether the first line names these columns."""
    with path.open("rb") as file:
        return file.readline(200).strip().split(b",") == [name.encode() for name in COLUMNS]


def read(path: Path, *, ranks: int | None = None, spec: ModelSpec | None = None) -> Placement:
    """Read a table; its lines may stand in any order.

    Raises
    ------
    FormatError
        If a line is not four whole numbers, a slot is there twice or not at all, or the table does not fit ``ranks``
        and ``spec``.
    """
    table = _table(path)
    shape = tuple(int(axis.max()) + 1 for axis in table[:3])
    slots = shape[0] * shape[1] * shape[2]
    if slots != table.shape[1]:
        raise FormatError(
            path, "", f"expected a line for each slot, [layers, ranks, slots] = {list(shape)}, {slots} in all, "
            f"found {table.shape[1]}"
        )  # fmt: skip
    experts = np.full(shape, np.iinfo(np.int32).min, dtype=np.int64)
    experts[tuple(table[:3])] = table[3]
    if (experts == np.iinfo(np.int32).min).any():
        layer, rank, slot = (int(i) for i in np.argwhere(experts == np.iinfo(np.int32).min)[0])
        raise FormatError(path, f"layer {layer}, rank {rank}, slot {slot}", "expected one line, found none")
    if ranks not in (shape[1], None):
        raise FormatError(path, "rank", f"expected {count(ranks, 'rank')}, found {shape[1]}")
    try:
        placement = Placement(experts, int(table[3].max()) + 1 if spec is None else spec.experts)
        return placement if spec is None else placement.for_model(spec)
    except InputError as error:
        raise FormatError(path, "expert", str(error)) from None


def write(placement: Placement, path: Path, *, spec: ModelSpec | None = None) -> None:
    """Write one line a slot."""
    placement = placement if spec is None else placement.for_model(spec)
    where = np.indices(placement.experts.shape).reshape(3, -1)
    lines = np.vstack([where, placement.experts.reshape(1, -1)]).T.tolist()
    write_text(path, "\n".join([",".join(COLUMNS), *(",".join(map(str, line)) for line in lines), ""]))


def _table(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return int64 [columns, lines]."""
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    except UnicodeDecodeError:
        raise FormatError(path, "", "expected CSV text, found binary data") from None
    except csv.Error as error:
        raise FormatError(path, "", f"expected CSV: {error}") from None
    if not lines or tuple(name.strip() for name in lines[0]) != COLUMNS:
        raise FormatError(path, "line 1", f"expected the columns {','.join(COLUMNS)}")
    table = []
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        # ten digits are more than any of them needs
        if len(line) != 4 or not all(_whole(text) for text in line):
            raise FormatError(path, f"line {number}", "expected four whole numbers, none but the expert below 0")
        values = [int(text) for text in line]
        if min(values[:3]) < 0 or values[3] < -1:
            raise FormatError(path, f"line {number}", "expected four whole numbers, none but the expert below 0")
        table.append(values)
    if not table:
        raise FormatError(path, "", "expected one line a slot, found none")
    return np.array(table, dtype=np.int64).T


def _whole(text: str) -> bool:
    digits = text.strip().removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 10
