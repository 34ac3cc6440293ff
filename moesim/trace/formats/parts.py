"""What a killed capture leaves: a folder ``TRACE.parts`` of complete trace files ``000000.parquet``, ... in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError
from moesim.trace.formats.common import join
from moesim.trace.trace import Trace


def part_files(folder: str | Path) -> list[Path]:
    """Return the parts in a folder, in order; files that are no parts are left out."""
    return sorted(file for file in Path(folder).glob("*.parquet") if file.stem.isdecimal())


def sniff(path: str | Path) -> bool:
    """Return whether this is a folder of parts."""
    from moesim.trace import parquet

    if not Path(path).is_dir():
        return False
    files = part_files(path)
    return bool(files) and parquet.sniff(files[0])


def read_part(path: str | Path) -> Trace:
    """Read one part."""
    from moesim.trace import parquet

    return parquet.read(path)


def parts(path: str | Path, *, origin: Mapping[str, Any] | None = None) -> Iterator[Trace]:
    """Yield a row group of the parts after another; see `read`."""
    import dataclasses

    from moesim.trace.parquet import iter_chunks

    files = part_files(path)
    if not files:
        raise FormatError(path, "", "expected files 000000.parquet, ... of a capture, found none")
    for file in files:
        for chunk in iter_chunks(file):
            yield dataclasses.replace(chunk, origin=dict(chunk.origin) | {"interrupted": True} | dict(origin or {}))


def read(path: str | Path, *, origin: Mapping[str, Any] | None = None) -> Trace:
    """Read what a capture left that was killed.

    Parameters
    ----------
    origin
        Facts to add to the origin.

    Raises
    ------
    FormatError
        If a part is damaged.
    """
    return join(path, parts(path, origin=origin))
