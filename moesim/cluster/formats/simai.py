"""Topology files of SimAI and its ns-3 fork: a header, the switches, one line a link.

```
27 8 2 9 40 H100                  things, GPUs per server, NVSwitches, switches, links, GPU
16 17 18 19 20 21 22 23 24 25 26  NVSwitches first, then the others; GPUs are 0 to 15
0 16 2880Gbps 0.000025ms 0        ends, bandwidth, delay, error rate
```
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError, InputError
from moesim.base.units import count, parse
from moesim.cluster.formats.like import Like, gb, us
from moesim.cluster.formats.text import clean, dotless, read_lines
from moesim.cluster.schema import MAX_RANKS

_HEADER = re.compile(r"(\d{1,7})\s+(\d{1,7})\s+(\d{1,7})\s+(\d{1,7})\s+(\d{1,9})(?:\s+(\S+))?")
_LIKE = {
    "A100": "a100-4x8-rail", "H100": "h100-4x8-rail", "H200": "h200-4x8-rail", "H800": "h800-4x8-rail",
    "H20": "h20-4x8-rail", "B200": "b200-4x8-rail",
}  # fmt: skip
_MOST_LINKS = 200_000


@dataclass(frozen=True)
class _Header:
    gpus: int
    per_server: int
    nvswitches: int
    switches: int
    links: int
    model: str


def sniff(path: Path, head: bytes) -> bool:
    """Return whether the file looks like a topology of SimAI."""
    lines = head.decode("utf-8", "replace").splitlines()[:3]
    link = re.compile(r"\s*\d+\s+\d+\s+[\d.]+[GMT]?bps\s")
    return len(lines) == 3 and _HEADER.fullmatch(lines[0].strip()) is not None and link.match(lines[2]) is not None


def read(path: Path, *, like: str | None = None) -> dict[str, Any]:
    """Return the tables of the topology; links and latencies are those of the file.

    Parameters
    ----------
    like
        Preset with the GPU; None: the one that the header names.

    Raises
    ------
    FormatError
        Names the line that is not understood.
    """
    lines = read_lines(path)
    header = _header(path, lines)
    if header.switches + header.nvswitches > MAX_RANKS:
        raise FormatError(path, "line 1", f"more than {MAX_RANKS:,} switches; describe a smaller cluster")
    if header.links > _MOST_LINKS or len(lines) > 2 * header.links + 64:
        raise FormatError(
            path,
            "line 1",
            f"announces {count(header.links, 'link')}, the file has {count(len(lines), 'line')}; at most "
            f"{_MOST_LINKS:,} links are read",
        )
    name = like or _LIKE.get(header.model.upper(), "h100-4x8-rail")
    gpu = Like(name).gpu
    notes = [
        f"{path.name} tells of the GPU only that it is {clean(header.model or 'unnamed')}: [gpu] is that of {name}"
    ]
    vertex = _vertices(path, lines[1].split(), header)
    links = []
    for number, line in enumerate(lines[2:], 3):
        if line.strip():
            links.append(_link(path, f"line {number}", line.split(), vertex, header))
    if len(links) != header.links:
        raise FormatError(
            path, "line 1", f"announces {count(header.links, 'link')}, the file has {len(links)}; it is cut off"
        )
    order = {"node": 0, "nic": 1, "spine": 2}
    return {
        "schema": 1,
        "name": dotless(path.stem),
        "about": f"imported from {clean(path.name)}",
        "notes": notes,
        "nodes": header.gpus // header.per_server,
        "gpus_per_node": header.per_server,
        "switches": [vertex[i] for i in range(header.gpus, header.gpus + header.nvswitches + header.switches)],
        "gpu": gpu,
        "link": sorted(links, key=lambda link: order[link["tier"]]),
    }


def _header(path: Path, lines: list[str]) -> _Header:
    match = _HEADER.fullmatch(lines[0].strip()) if lines else None
    if match is None or len(lines) < 2:
        raise FormatError(path, "line 1", "expected things, GPUs per server, NVSwitches, switches, links, GPU model")
    things, per_server, nvswitches, switches, links = (int(match[i]) for i in range(1, 6))
    gpus = things - nvswitches - switches
    if not 1 <= gpus <= MAX_RANKS or per_server < 1 or gpus % per_server:
        raise FormatError(
            path, "line 1", f"{things} things less {nvswitches} NVSwitches and {switches} switches leave {gpus} for "
            f"GPUs; expected 1 to {MAX_RANKS:,}, in servers of {per_server}"
        )  # fmt: skip
    servers = gpus // per_server
    if nvswitches % servers:
        raise FormatError(path, "line 1", f"{nvswitches} NVSwitches do not divide among {servers} servers")
    return _Header(gpus, per_server, nvswitches, switches, links, match[6] or "")


def _vertices(path: Path, ids: list[str], header: _Header) -> dict[int, str]:
    expected = [str(i) for i in range(header.gpus, header.gpus + header.nvswitches + header.switches)]
    if ids != expected:
        raise FormatError(
            path, "line 2", f"expected the switches {' '.join(expected[:3])} ... after the GPUs, in order"
        )
    vertex = {i: f"node{i // header.per_server}.gpu{i % header.per_server}" for i in range(header.gpus)}
    each = header.nvswitches // (header.gpus // header.per_server)
    for k in range(header.nvswitches):
        vertex[header.gpus + k] = f"node{k // each}.switch{k % each if each > 1 else ''}"
    for k in range(header.switches):
        vertex[header.gpus + header.nvswitches + k] = f"switch{header.gpus + header.nvswitches + k}"
    return vertex


def _link(path: Path, place: str, words: list[str], vertex: dict[int, str], header: _Header) -> dict[str, Any]:
    if len(words) not in (4, 5) or not all(re.fullmatch(r"\d{1,7}", word) for word in words[:2]):
        raise FormatError(path, place, f"expected ends, bandwidth, delay, error rate, got {' '.join(words)[:60]!r}")
    a, b = int(words[0]), int(words[1])
    if a not in vertex or b not in vertex:
        raise FormatError(
            path, place, f"{a if a not in vertex else b} is beyond the {count(len(vertex), 'thing')} of line 1"
        )
    try:
        rate = parse(words[2], "bandwidth", "bandwidth")
        delay = parse(words[3], "time", "delay")
    except InputError as error:
        raise FormatError(path, place, str(error)) from None
    nvswitch = range(header.gpus, header.gpus + header.nvswitches)
    kind = "node" if a in nvswitch or b in nvswitch or max(a, b) < header.gpus else "spine"
    if kind == "spine" and min(a, b) < header.gpus:
        kind = "nic"
    tag = f"assumed: {path.name}, {place}"
    return {"ends": [vertex[a], vertex[b]], "tier": kind, "bandwidth": gb(rate), "latency": us(delay), "source": tag}
