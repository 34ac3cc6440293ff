"""A capture on its way to disk that nothing can lose: a folder of small complete trace files, joined at the end.

Parquet can be read only once its footer is written, so a capture that wrote one file would lose all of it when its
process is killed. A spool writes each chunk as a trace file of its own, atomically, into ``TRACE.parts`` beside the
trace; when it is closed they are joined and the folder goes. One that is left is read by ``moesim import TRACE.parts``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from moesim.base.errors import InputError
from moesim.trace.formats.parts import part_files, read_part
from moesim.trace.parquet import TraceWriter, iter_chunks
from moesim.trace.trace import Trace, plain


def parts_folder(path: str | Path) -> Path:
    """Return the folder in which the parts of a trace wait."""
    return Path(f"{path}.parts")


class Spool:
    """Write a trace chunk by chunk; what was appended survives the death of the process.

    Use it in a ``with`` block. When that is left by an exception or Ctrl-C, what was appended is joined as well, and
    its origin says ``"interrupted": true``.

    Parameters
    ----------
    path
        The trace file to write.
    origin
        Who captured it, from what, with which versions.
    resume
        Whether parts of an earlier run that was killed may be there: they are kept if their origin is the same.

    Raises
    ------
    InputError
        If the folder cannot be made, or holds the parts of another capture.
    """

    def __init__(self, path: str | Path, origin: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path, self.folder, self.origin = Path(path), parts_folder(path), plain(origin)
        self.chunks = 0
        self.rows = 0
        found = part_files(self.folder) if self.folder.is_dir() else []
        if found:
            earlier = dict(read_part(found[0]).origin)
            if not resume or earlier != self.origin:
                raise InputError(
                    f"{self.folder}: holds what another capture left; keep it with  moesim import {self.folder} -o "
                    "FILE  and delete the folder, then capture again"
                )
            self.chunks = int(found[-1].stem) + 1
            self.rows = sum(part.rows for file in found for part in iter_chunks(file))
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be made: {error.strerror}; choose a writable folder") from None

    def kept(self) -> Iterator[Trace]:
        """Yield what is in the folder, a row group at a time."""
        for file in part_files(self.folder):
            yield from iter_chunks(file)

    def append(self, chunk: Trace) -> None:
        """Write a chunk; once this returns, it is safe."""
        if chunk.rows:
            name = f"{self.chunks:06d}.parquet"
            with TraceWriter(self.folder / name, chunk.spec, self.origin, chunk.domains) as file:
                file.append(chunk)
            self.chunks += 1
            self.rows += chunk.rows

    def join(self, *, interrupted: bool = False, domains: Sequence[str] = (), **facts: Any) -> None:
        """Join the parts into the trace file and remove the folder.

        Parameters
        ----------
        interrupted
            Whether something is missing.
        domains
            Names of domain codes, in the order wanted.
        facts
            More facts for the origin.
        """
        kept = self.kept()
        first = next(kept, None)
        if first is not None:
            origin = self.origin | plain(facts) | ({"interrupted": True} if interrupted else {})
            with TraceWriter(self.path, first.spec, origin, domains, keep_partial=False) as writer:
                writer.append(first)
                for chunk in kept:
                    writer.append(chunk)
        shutil.rmtree(self.folder)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and not self.rows:
            self.folder.rmdir()
            raise InputError(f"{self.path}: nothing was captured, so there is no trace to write")
        self.join(interrupted=error is not None)
