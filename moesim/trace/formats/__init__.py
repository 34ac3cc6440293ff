"""Trace formats: modules with ``sniff(path) -> bool`` and ``read(path, **options) -> Trace``."""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from moesim.base.errors import FormatError, UnknownName
from moesim.base.registry import Registry
from moesim.trace.formats.common import head
from moesim.trace.trace import Trace


class TraceFormat(Protocol):
    """What a module that reads a trace format offers."""

    def sniff(self, path: str | Path) -> bool:
        """Return whether the file looks like this format; never raise."""

    @property
    def read(self) -> Any:
        """``read(path, **options) -> Trace``."""

    # a format whose files can be read in parts also has ``parts(path, **options) -> Iterator[Trace]``


TRACE_FORMATS: Final[Registry[TraceFormat]] = Registry(
    "trace format",
    {
        "parquet": "moesim.trace.parquet",
        "eplb-loads": "moesim.trace.formats.eplb_loads",
        "npz": "moesim.trace.formats.npz",
        "sglang-stat": "moesim.trace.formats.sglang_stat",
        "sglang-token": "moesim.trace.formats.sglang_token",
        "sglang-pass": "moesim.trace.formats.sglang_pass",
        "routed-experts": "moesim.trace.formats.routed_experts",
        "trtllm-stats": "moesim.trace.formats.trtllm_stats",
        "megatron": "moesim.trace.formats.megatron",
        "expert-selection": "moesim.trace.formats.expert_selection",
        "flame": "moesim.trace.formats.flame",
        "jsonl": "moesim.trace.formats.jsonl",
        "parts": "moesim.trace.formats.parts",
    },
    "moesim.trace_formats",
)


_ZIP: Final = b"PK\x03\x04"


def read_any(path: str | Path, format: str | None = None, **options: Any) -> Trace:
    """Read a trace in any known format.

    Parameters
    ----------
    path
        A file, or a folder where the format is one of folders.
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
    plugin = _plugin(path, format, options)
    trace: Trace = plugin.read(path, **options)
    return trace


def import_any(path: str | Path, output: str | Path, format: str | None = None, **options: Any) -> int:
    """Write a trace in any known format as a trace file and return its number of rows.

    Formats that can be read in parts (SGLang per token, routed experts, Megatron, expert selection) are never held in
    memory as a whole.

    Parameters
    ----------
    output
        The trace file to write.
    path, format, options
        As for `read_any`.

    Raises
    ------
    FormatError, UnknownName
        As for `read_any`; then nothing is written.
    """
    from moesim.trace.parquet import TraceWriter

    plugin = _plugin(path, format, options)
    if not hasattr(plugin, "parts"):
        trace: Trace = plugin.read(path, **options)
        trace.write(output)
        return trace.rows
    parts: Iterator[Trace] = plugin.parts(path, **options)
    first = next(parts, None)
    if first is None:
        raise FormatError(path, "", "expected tokens, found none; record again")
    with TraceWriter(output, first.spec, first.origin, domains=first.domains, keep_partial=False) as writer:
        writer.append(first)
        for part in parts:
            writer.origin = dict(part.origin) | writer.origin
            writer.append(part)
    return writer.rows


def _plugin(path: str | Path, format: str | None, options: Mapping[str, Any]) -> TraceFormat:
    """Return the format of a file, after its options were checked."""
    if not Path(path).exists():
        raise FormatError(path, "", "no such file; give the path of a trace")
    if format is None:
        format = next((name for name in TRACE_FORMATS.names() if TRACE_FORMATS.get(name).sniff(path)), None)
    if format is None:
        if head(path, 4) == _ZIP and not zipfile.is_zipfile(path):
            raise FormatError(path, "", "not a complete archive, as .pt and .npz files are; copy it again")
        known = ", ".join(TRACE_FORMATS.names())
        raise FormatError(path, "", f"no trace format knows this file (tried {known}); name its format if it is one")
    plugin = TRACE_FORMATS.get(format)
    known_options = list(inspect.signature(plugin.read).parameters)[1:]
    for name in options:
        if name not in known_options:
            raise UnknownName(f"option of trace format {format}", name, known_options)
    return plugin
