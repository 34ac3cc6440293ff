"""DeepSeek EPLB's tensors as numpy files.

``.npz``: ``phy2log`` [layers, slots], ``log2phy`` [layers, experts, most copies] padded with -1, ``logcnt``
[layers, experts], as ``rebalance_experts`` returns them, and ``ranks``, which only we write. ``.npy``: ``phy2log``
alone.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import FormatError, InputError
from moesim.base.files import atomic_path
from moesim.placement.formats import require_full
from moesim.placement.placement import EMPTY, Placement
from moesim.spec import ModelSpec

_DAMAGE: Final = (OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise for files that are not what they seem."""


def sniff(path: Path) -> bool:
    """Return whether the file is an npz with ``phy2log``, or an npy."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return "phy2log.npy" in archive.namelist()
        with path.open("rb") as file:
            return file.read(6) == b"\x93NUMPY"
    except (OSError, zipfile.BadZipFile):
        return False


def read(path: Path, *, ranks: int | None = None, spec: ModelSpec | None = None) -> Placement:
    """Read a placement from ``phy2log``; the other tensors must agree with it.

    Raises
    ------
    FormatError
        If an array is missing, not of integers, or disagrees, or the number of ranks is told nowhere.
    """
    arrays = _load(path)
    if "phy2log" not in arrays:
        raise FormatError(path, "phy2log", f"expected this array, found {sorted(arrays)}")
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.integer):
            raise FormatError(path, name, f"expected integers, found {array.dtype}")
    if ranks is None and "ranks" not in arrays:
        raise FormatError(path, "", "the file does not tell the number of ranks: give ranks=")
    if ranks is None:
        if arrays["ranks"].size != 1:
            raise FormatError(path, "ranks", f"expected one number, found shape {arrays['ranks'].shape}")
        ranks = int(arrays["ranks"].reshape(()))
    physical = arrays["phy2log"]
    counts = arrays.get("logcnt")
    if spec is not None:
        experts = spec.experts
    elif counts is not None and counts.ndim == 2:
        experts = counts.shape[1]
    else:
        experts = int(physical.max(initial=0)) + 1
    try:
        placement = Placement.from_physical(physical, ranks, experts)
        placement = placement if spec is None else placement.for_model(spec)
    except InputError as error:
        raise FormatError(path, "phy2log", str(error)) from None
    for name, expected in (("logcnt", placement.replicas), ("log2phy", logical_to_physical(placement))):
        if name in arrays and not _agrees(arrays[name], expected):
            raise FormatError(path, name, "disagrees with phy2log; write the file again from one of them")
    return placement


def write(placement: Placement, path: Path, *, spec: ModelSpec | None = None) -> None:
    """Write all tensors to ``.npz``, or ``phy2log`` alone to ``.npy``.

    Raises
    ------
    InputError
        If a slot is empty or the file has another ending.
    """
    placement = placement if spec is None else placement.for_model(spec)
    require_full(placement, "DeepSeek's EPLB")
    physical = placement.physical_to_logical.astype(np.int64)
    if path.suffix not in (".npz", ".npy"):
        raise InputError(f"{path}: EPLB tensors go to a file that ends in .npz (all) or .npy (phy2log alone)")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".npy":
            np.save(file, physical)
        else:
            np.savez_compressed(
                file,
                phy2log=physical,
                log2phy=logical_to_physical(placement),
                logcnt=placement.replicas,
                ranks=np.int64(placement.ranks),
            )


def logical_to_physical(placement: Placement) -> Array:
    """Return int64 [layers, experts, most copies]: physical slots of every expert, ascending, padded with -1."""
    result = np.full((placement.layers, placement.num_experts, int(placement.replicas.max())), -1, dtype=np.int64)
    for layer in range(placement.layers):
        indptr, rank, slot = placement.holders(layer)
        expert = np.repeat(np.arange(placement.num_experts), np.diff(indptr))
        copy = np.arange(len(rank)) - indptr[expert]
        result[layer, expert, copy] = rank * placement.slots_per_rank + slot
    return result


def _agrees(found: Array, expected: Array) -> bool:
    if expected.ndim == 2:
        return np.array_equal(found, expected)
    # writers may pad more, and list copies in any order
    if found.ndim != 3 or found.shape[:2] != expected.shape[:2] or found.shape[2] < expected.shape[2]:
        return False
    ordered = -np.sort(-found, axis=2)
    return np.array_equal(ordered[:, :, : expected.shape[2]], -np.sort(-expected, axis=2)) and bool(
        np.all(ordered[:, :, expected.shape[2] :] == EMPTY)
    )


def _load(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file:
            held = np.load(file, allow_pickle=False)
            if isinstance(held, np.ndarray):
                return {"phy2log": held}
            with held:
                return {name: np.asarray(held[name]) for name in held.files}
    except _DAMAGE as error:
        raise FormatError(path, "", f"expected numpy arrays (.npz or .npy): {' '.join(str(error).split())}") from None
