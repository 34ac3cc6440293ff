"""``ibnetdiscover``: the switches, adapters and cables of an InfiniBand fabric."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError
from moesim.cluster.formats.fabric import MOST_CABLES, Adapter, Cable, Fabric, describe_adapter, fabric_tables, rate_of
from moesim.cluster.formats.text import read_lines

_GUID = re.compile(r"(sysimgguid|switchguid|caguid|rtguid|vendid|devid)=(0x[0-9a-fA-F]{1,16})(?:\([0-9a-fA-F]*\))?")
_THING = re.compile(r'(Switch|Ca|Rt)\s+\d+\s+"([SHR]-[0-9a-fA-F]{1,16})"\s*#\s*"([^"]*)"(.*)')
_PORT = re.compile(r'\[(\d+)\](?:\[[^\]]*\])?(?:\([0-9a-fA-F]*\))?\s+"([SHR]-[0-9a-fA-F]{1,16})"\[(\d+)\].*?(\S+)\s*')


def sniff(path: Path, head: bytes) -> bool:
    """Return whether the file looks like the output of ibnetdiscover."""
    return re.search(rb"^(?:switchguid|caguid)=0x|^(?:Switch|Ca)\s+\d+\s+\"[SH]-", head, re.MULTILINE) is not None


def read(path: Path, *, like: str | None = None) -> dict[str, Any]:
    """Return the tables of the fabric; each adapter is taken for the NIC of one GPU.

    Parameters
    ----------
    like
        Preset with the constants that the dump does not tell.

    Raises
    ------
    FormatError
        Names the line that is not understood.
    """
    return fabric_tables(fabric(path), like)


def fabric(path: Path) -> Fabric:
    """Return what the dump says.

    Raises
    ------
    FormatError
        Names the line that is not understood.
    """
    switches: dict[str, str] = {}
    adapters: dict[str, Adapter] = {}
    dropped: set[str] = set()
    ports: dict[tuple[str, int], tuple[str, int, str, int]] = {}
    here, guid = "", None
    for number, line in enumerate(read_lines(path), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if match := _GUID.fullmatch(text):
            guid = int(match[2], 16) if match[1] == "sysimgguid" else guid
        elif match := _THING.fullmatch(text):
            here = match[2]
            if here in switches or here in adapters or here in dropped:
                raise FormatError(path, f"line {number}", f"{here} comes twice; give one dump")
            if match[1] == "Switch":
                switches[here] = match[3]
            elif match[1] == "Ca" and (adapter := describe_adapter(here, match[3], guid, number)) is not None:
                adapters[here] = adapter
            else:
                dropped.add(here)
            guid = None
        elif (match := _PORT.fullmatch(text)) and here:
            ports[here, int(match[1])] = match[2], int(match[3]), match[4], number
        else:
            raise FormatError(path, f"line {number}", f"expected a GUID, a Switch, a Ca or a [port], got {text[:60]!r}")
        if len(ports) > 2 * MOST_CABLES:
            raise FormatError(path, f"line {number}", f"more than {MOST_CABLES:,} cables; give the dump of one cluster")
    if not switches or not ports:
        raise FormatError(
            path, "", "the dump holds no switch with cables: the discovery saw one adapter only; run it again"
        )
    return Fabric(path, switches, adapters, _cables(path, ports, switches, adapters, dropped))


def _cables(
    path: Path,
    ports: dict[tuple[str, int], tuple[str, int, str, int]],
    switches: dict[str, str],
    adapters: dict[str, Adapter],
    dropped: set[str],
) -> tuple[Cable, ...]:
    out = []
    for (a, port), (b, remote, speed, line) in ports.items():
        if a in dropped or b in dropped:
            continue
        if b not in switches and b not in adapters:
            raise FormatError(path, f"line {line}", f"{b} is nowhere described; the dump is cut off")
        back = ports.get((b, remote))
        if back is not None and back[:2] != (a, port):
            raise FormatError(
                path, f"line {line}", f"port {remote} of {b} leads elsewhere (line {back[3]}); give one dump"
            )
        rate = rate_of(speed, path, line)
        if back is None or (a, port) < (b, remote):
            out.append(Cable(a, b, rate, line))
    return tuple(out)
