"""``nvidia-smi topo -m``: how the GPUs and NICs of one node see each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError
from moesim.cluster.formats.node import NODE, PHB, PIX, PXB, SYS, Nic, NodeFacts, all_switched, node_tables
from moesim.cluster.formats.text import read_lines, without_escapes

_MEET = {"PIX": PIX, "PXB": PXB, "PHB": PHB, "NODE": NODE, "SYS": SYS, "SOC": SYS}
_DEVICE = re.compile(r"(?:GPU|NIC)\d+|(?:mlx|bnxt|efa|rdma|roce|ib|irdma|hns)\w*")
_HINT = {12: "a100-4x8-rail", 8: "h800-4x8-rail", 18: "h100-4x8-rail"}


def sniff(path: Path, head: bytes) -> bool:
    """Return whether the file looks like the matrix of ``nvidia-smi topo -m``."""
    text = without_escapes(head.decode("utf-8", "replace"))
    header = re.search(r"^[ \t]{0,80}GPU0\b", text, re.MULTILINE)
    return header is not None and re.search(r"^GPU0[ \t]{1,80}X\b", text, re.MULTILINE) is not None


def read(path: Path, *, like: str | None = None) -> dict[str, Any]:
    """Return the tables of a cluster of this one node; ``nodes = N`` makes more.

    Parameters
    ----------
    like
        Preset with the constants that the matrix does not tell; None: the one whose NVLinks fit.

    Raises
    ------
    FormatError
        Names the line that is not understood.
    """
    return node_tables(facts(path), like)


def facts(path: Path) -> NodeFacts:
    """Return what the matrix says.

    Raises
    ------
    FormatError
        Names the line that is not understood.
    """
    lines = read_lines(path)
    start = next((i for i, line in enumerate(lines) if line.split()[:1] == ["GPU0"] and "X" not in line.split()), None)
    if start is None:
        raise FormatError(path, "", "expected the matrix of `nvidia-smi topo -m`, whose first line names GPU0")
    columns = []
    for word in lines[start].split():
        if not _DEVICE.fullmatch(word):
            break  # the affinity columns
        columns.append(word)
    rows: dict[str, list[str]] = {}
    legend: dict[str, str] = {}
    for number, line in enumerate(lines[start + 1 :], start + 2):
        words = line.split()
        if not words:
            continue
        if re.fullmatch(r"NIC\d+:", words[0]) and len(words) > 1:
            legend[words[0][:-1]] = words[1]
        elif words[0] in columns:
            if words[0] in rows:
                raise FormatError(path, f"line {number}", f"{words[0]} comes twice; give one matrix")
            rows[words[0]] = words[1 : 1 + len(columns)]
            _check_cells(rows[words[0]], columns, path, number)
        elif re.fullmatch(r"(?:GPU|NIC)\d+", words[0]):
            raise FormatError(path, f"line {number}", f"row {words[0]} has no column; give the whole matrix")
    missing = [name for name in columns if name not in rows]
    if missing:
        raise FormatError(path, f"line {start + 1}", f"column {missing[0]} has no row; give the whole matrix")
    return _facts(path, columns, rows, legend)


def _check_cells(cells: list[str], columns: list[str], path: Path, number: int) -> None:
    if len(cells) < len(columns):
        raise FormatError(path, f"line {number}", f"expected {len(columns)} cells, found {len(cells)}")
    for cell in cells:
        if cell != "X" and cell not in _MEET and not re.fullmatch(r"NV\d{1,2}", cell):
            raise FormatError(
                path, f"line {number}", f"expected X, NV<links>, PIX, PXB, PHB, NODE or SYS, got {cell[:40]!r}"
            )


def _facts(path: Path, columns: list[str], rows: dict[str, list[str]], legend: dict[str, str]) -> NodeFacts:
    gpus = [name for name in columns if re.fullmatch(r"GPU\d+", name)]
    direct: dict[tuple[int, int], int] = {}
    meet: dict[tuple[int, int], int] = {}
    for i, a in enumerate(gpus):
        for j in range(i + 1, len(gpus)):
            cell, back = rows[a][columns.index(gpus[j])], rows[gpus[j]][columns.index(a)]
            if cell != back or cell == "X":
                raise FormatError(
                    path, f"row {a}", f"{a} sees {gpus[j]} as {cell}, but is seen as {back}; save it again"
                )
            if cell.startswith("NV"):
                direct[i, j] = int(cell[2:])
            else:
                meet[i, j] = _MEET[cell]
    nics = tuple(
        Nic(legend.get(name, name), tuple(_near(rows[gpu][columns.index(name)], path, gpu) for gpu in gpus))
        for name in columns
        if name not in gpus and not legend.get(name, name).startswith(("mlx5_bond", "bond"))
    )
    switched = all_switched(direct, len(gpus))
    count = switched or max(direct.values(), default=0)
    hint = _HINT.get(count, "h100-4x8-rail")
    notes = []
    bonds = [name for name in columns if legend.get(name, name).startswith(("mlx5_bond", "bond"))]
    if bonds:
        notes.append(f"bonded NICs {', '.join(bonds)} carry storage and management: left out")
    return NodeFacts(path, len(gpus), meet, switched, {} if switched else direct, nics, hint, tuple(notes))


def _near(cell: str, path: Path, gpu: str) -> int:
    if cell not in _MEET:
        raise FormatError(path, f"row {gpu}", f"expected PIX, PXB, PHB, NODE or SYS towards a NIC, got {cell}")
    return _MEET[cell]
