"""Trace formats: modules with ``sniff(path) -> bool`` and ``read(path, **options) -> Trace``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Final, Protocol

from moesim.base.errors import FormatError, UnknownName
from moesim.base.registry import Registry
from moesim.trace.trace import Trace


class TraceFormat(Protocol):
    """What a module that reads a trace format offers."""

    def sniff(self, path: str | Path) -> bool:
        """Return whether the file looks like this format; never raise."""

    @property
    def read(self) -> Any:
        """``read(path, **options) -> Trace``."""


TRACE_FORMATS: Final[Registry[TraceFormat]] = Registry(
    "trace format",
    {"parquet": "moesim.trace.parquet", "npz": "moesim.trace.formats.npz"},
    "moesim.trace_formats",
)


def read_any(path: str | Path, format: str | None = None, **options: Any) -> Trace:
    """Read a trace in any known format.

    Parameters
    ----------
    format
        Name of the format; found from the content of the file where it is None.
    options
        Options of that format, e.g. ``model="gpt-oss-20b"`` of npz.

    Raises
    ------
    FormatError
        If no format knows the file, or the file is not what its format says.
    UnknownName
        If there is no such format or option.
    """
    if not Path(path).is_file():
        raise FormatError(path, "", "no such file; give the path of a trace")
    if format is None:
        format = next((name for name in TRACE_FORMATS.names() if TRACE_FORMATS.get(name).sniff(path)), None)
    if format is None:
        known = ", ".join(TRACE_FORMATS.names())
        raise FormatError(path, "", f"no trace format knows this file (tried {known}); name its format if it is one")
    read = TRACE_FORMATS.get(format).read
    known_options = list(inspect.signature(read).parameters)[1:]
    for name in options:
        if name not in known_options:
            raise UnknownName(f"option of trace format {format}", name, known_options)
    trace: Trace = read(path, **options)
    return trace
