"""What a server answered, kept word for word as it comes: a reply that was paid for is not lost to a later error.

One JSON object a line: the reply, with ``request`` (number of its prompt) and ``domain`` added. ``moesim import`` reads
it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError, InputError


class Journal:
    """Replies beside the trace that is made of them, in ``TRACE.responses.jsonl``.

    Parameters
    ----------
    trace
        The trace file.
    facts
        What the replies are of; a journal of something else is not gone on with.

    Raises
    ------
    InputError
        If it cannot be written, or holds replies of another capture.
    """

    def __init__(self, trace: str | Path, facts: Mapping[str, Any]) -> None:
        self.path = Path(f"{trace}.responses.jsonl")
        self._facts = json.loads(json.dumps(dict(facts)))
        self.done: set[int] = set()
        if self.path.exists():
            self._go_on()
        try:
            self._file = open(self.path, "ab")  # noqa: SIM115 - open as long as the capture runs
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}; choose a writable folder") from None

    def _go_on(self) -> None:
        whole = 0
        with open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # cut off by a kill
                whole += len(line)
        os.truncate(self.path, whole)
        for number, reply in self:
            if reply.get("capture") != self._facts:
                raise InputError(
                    f"{self.path}: holds the replies of another capture; import it with  moesim import {self.path} "
                    "--model MODEL -o FILE  and delete it, then capture again"
                )
            self.done.add(number)

    def append(self, number: int, domain: str, reply: Mapping[str, Any]) -> None:
        """Write a reply; once this returns, it is on disk."""
        line = json.dumps({"request": number, "domain": domain, "capture": self._facts, **reply})
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.add(number)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with open(self.path, "rb") as file:
            for place, line in enumerate(file, 1):
                try:
                    reply = json.loads(line)
                    number = int(reply["request"])
                except (ValueError, KeyError, TypeError, RecursionError):
                    raise FormatError(self.path, f"line {place}", "is no reply of a capture; delete the line") from None
                yield number, reply

    def remove(self) -> None:
        """Remove it: everything in it is in the trace."""
        self.path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self.done and self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()
