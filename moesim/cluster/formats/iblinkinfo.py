"""``iblinkinfo``: the cables of an InfiniBand fabric, one line a port; in blocks or, with ``-l``, without."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError
from moesim.cluster.formats.fabric import LANE, MOST_CABLES, Adapter, Cable, Fabric, describe_adapter, fabric_tables
from moesim.cluster.formats.text import read_lines

_BLOCK = re.compile(r"(CA|Switch|Router):\s*(?:(0x[0-9a-fA-F]{1,16})\s+)?(.*?):?\s*")
_LINE = re.compile(
    r'\s*(?:(0x[0-9a-fA-F]{1,16})\s+)?(?:"([^"]*)"\s+)?(\d+)\s+(\d+)\[[^\]]*\]\s+==\((.*?)\)==>\s*'
    r'(?:0x[0-9a-fA-F]{1,16}\s+)?(?:(\d+)\s+(\d+))?\s*\[[^\]]*\]\s+"([^"]*)".*'
)
_UP = re.compile(r"\s*(\d{1,2})X\s+(\d+(?:\.\d+)?)\s+Gbps\s*(?:\((\w+)\))?\s*Active\s*/\s*LinkUp\s*")
# signalling rate of a lane in Gb/s, as iblinkinfo prints it; rates differ from these by coding
_SIGNAL = {
    2.5: "SDR", 5.0: "DDR", 10.0: "QDR", 14.0625: "FDR", 25.78125: "EDR", 53.125: "HDR", 106.25: "NDR", 212.5: "XDR",
}  # fmt: skip


def sniff(path: Path, head: bytes) -> bool:
    """Return whether the file looks like the output of iblinkinfo."""
    return re.search(rb"\[[^\]\n]{0,8}\]\s+==\(.{0,80}\)==>", head) is not None


def read(path: Path, *, like: str | None = None) -> dict[str, Any]:
    """Return the tables of the fabric; each adapter is taken for the NIC of one GPU.

    Parameters
    ----------
    like
        Preset with the constants that the output does not tell.

    Raises
    ------
    FormatError
        Names the line that is not understood.
    """
    return fabric_tables(fabric(path), like)


def fabric(path: Path) -> Fabric:
    """Return what the output says; things are known by their LID.

    Raises
    ------
    FormatError
        Names the line that is not understood.
    """
    ports: dict[tuple[str, int], tuple[str, int, float, int]] = {}
    names: dict[str, tuple[str, int]] = {}  # LID to name and line
    guids: dict[str, int] = {}
    switches: dict[str, str] = {}
    kind, block_guid, block_name = "", "", ""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if match := _LINE.fullmatch(line):
            lid, port, state = match[3], int(match[4]), match[5]
            name = block_name if match[2] is None else match[2]
            names[lid] = name.strip(), number
            if guid := match[1] or block_guid:
                guids[lid] = int(guid, 16)
            if kind == "Switch" or (match[2] is not None and _is_switch(name)):
                switches[lid] = name.strip()
            if "Down" in state or match[6] is None:
                continue
            ports[lid, port] = match[6], int(match[7]), _rate(state, path, number), number
            names.setdefault(match[6], (match[8].strip(), number))
        elif match := _BLOCK.fullmatch(line.strip()):
            kind, block_guid, block_name = match[1], match[2] or "", match[3]
        else:
            raise FormatError(
                path, f"line {number}", f"expected CA:, Switch: or a port with ==( )==>, got {line.strip()[:60]!r}"
            )
        if len(ports) > 2 * MOST_CABLES:
            raise FormatError(
                path, f"line {number}", f"more than {MOST_CABLES:,} cables; give the output of one cluster"
            )
    if not switches:
        raise FormatError(path, "", "holds no switch; run iblinkinfo without --cas-only")
    return _joined(path, ports, names, guids, switches)


def _joined(
    path: Path,
    ports: dict[tuple[str, int], tuple[str, int, float, int]],
    names: dict[str, tuple[str, int]],
    guids: dict[str, int],
    switches: dict[str, str],
) -> Fabric:
    adapters: dict[str, Adapter] = {}
    dropped: set[str] = set()
    for lid, (name, line) in names.items():
        if lid in switches:
            continue
        if _is_switch(name):  # named by its neighbours only: a partial scan
            switches[lid] = name
        elif (adapter := describe_adapter(lid, name, guids.get(lid), line)) is not None:
            adapters[lid] = adapter
        else:
            dropped.add(lid)
    cables = []
    for (a, port), (b, remote, rate, line) in ports.items():
        back = ports.get((b, remote))
        if back is not None and back[:2] != (a, port):
            raise FormatError(
                path, f"line {line}", f"port {remote} of lid {b} leads elsewhere (line {back[3]}); run it again"
            )
        if a not in dropped and b not in dropped and (back is None or (a, port) < (b, remote)):
            cables.append(Cable(a, b, rate, line))
    return Fabric(path, switches, adapters, tuple(cables))


def _is_switch(name: str) -> bool:
    return name.startswith("MF0;") or "Quantum" in name or "Switch" in name or "Infiniscale" in name


def _rate(state: str, path: Path, line: int) -> float:
    match = _UP.fullmatch(state)
    speed = None if match is None else match[3] or _SIGNAL.get(float(match[2]))
    if match is None or speed not in LANE:
        raise FormatError(
            path, f"line {line}", f"expected a link such as 4X 106.25 Gbps Active/LinkUp, got {state.strip()[:60]!r}"
        )
    return int(match[1]) * LANE[speed] * 1e9 / 8
