"""Judges of file formats: traces, placements, topologies."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moesim.base.errors import MoesimError
from moesim.cluster import Cluster
from moesim.testing.laws import Verdict, law
from moesim.testing.worlds import placements


def check_format(format: Any, *, suffix: str = "", sample: Path | None = None, **options: Any) -> None:
    """Judge a file format: a module with ``sniff`` and ``read``, and ``write`` where it can.

    A placement format writes placements and must read back what it wrote; a trace format is given a sample file.
    ``sniff`` knows its own files and never raises; broken files end in a MoesimError, never in another exception.

    Parameters
    ----------
    format
        The module.
    suffix
        How the names of its files end, where the format wants that.
    sample
        A file of a trace format, or a folder where it is one of folders.
    options
        Options of ``read`` for the sample.

    Raises
    ------
    Verdict
        If a law is broken.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if sample is not None:
            _check_reading(format.sniff, partial(format.read, **options), sample, place)
            return
        for number, (placement, spec) in enumerate(placements()):
            path = place / f"placement{number}{suffix}"
            try:
                format.write(placement, path, spec=spec)
            except MoesimError:
                law(placement.empty_slots > 0, f"placement {number}: a full placement was refused")
                law(not path.exists(), f"placement {number}: refused, but something was written")
                continue
            read = partial(format.read, ranks=placement.ranks, spec=spec)
            law(np.array_equal(read(path).experts, placement.experts), f"placement {number}: read(write(x)) is not x")
            before = path.read_bytes()
            format.write(placement, path, spec=spec)
            law(path.read_bytes() == before, f"placement {number}: the same placement gave other bytes")
            _check_reading(format.sniff, read, path, place)


def check_topology(format: Any, sample: Path, **options: Any) -> None:
    """Judge a topology format: a module with ``sniff(path, head)`` and ``read(path, **options) -> tables``.

    The tables build a cluster, the same one each time; ``sniff`` knows its own files and never raises; a file of
    something else ends in a MoesimError. A text that was cut short may still describe a smaller cluster.

    Parameters
    ----------
    format
        The module.
    sample
        A file of the format.
    options
        Options of ``read``.

    Raises
    ------
    Verdict
        If a law is broken.
    """
    from moesim.cluster.build import build
    from moesim.cluster.schema import check

    def read(path: Path) -> Cluster:
        return build(check(format.read(path, **options), str(path)))

    def sniff(path: Path) -> bool:
        return bool(format.sniff(path, path.read_bytes()[:65_536]))

    law(read(sample).digest == read(sample).digest, f"{sample.name}: the same file gave another cluster")
    with tempfile.TemporaryDirectory() as folder:
        _check_reading(sniff, read, sample, Path(folder), cut_is_fine=True)


def _check_reading(
    sniff: Callable[[Path], bool], read: Callable[[Path], Any], path: Path, folder: Path, *, cut_is_fine: bool = False
) -> None:
    law(bool(sniff(path)), f"{path.name}: sniff does not know its own file")
    read(path)
    damages: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda whole: b"",
        # an odd part, so that no file of equal lines is cut between two of them
        "cut": lambda whole: whole[: len(whole) * 3 // 7],
        "binary": lambda whole: bytes(range(256)) * 8,
        "text": lambda whole: b"no format at all\n",
        "json": lambda whole: b'{"something": [1, 2]}',
    }
    for name, damage in damages.items():
        # the same name in a folder of its own: some formats tell by their names which files belong together
        broken = folder / f"{path.name}-{name}" / path.name
        broken.parent.mkdir()
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        for file in files:
            copy = broken / file.relative_to(path) if path.is_dir() else broken
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(damage(file.read_bytes()))
        try:
            sniff(broken)
        except Exception as error:
            raise Verdict(f"{name} file: sniff raised {type(error).__name__}: {error}") from error
        try:
            read(broken)
        except MoesimError as error:
            law("\n" not in str(error), f"{name} file: the error is not one line: {error}")
            continue
        except Exception as error:
            raise Verdict(f"{name} file: read raised {type(error).__name__} instead of a MoesimError") from error
        law(name == "cut" and cut_is_fine, f"{name} file: was read without an error")
