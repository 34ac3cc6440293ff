"""Slurm's ``topology.conf``: ``SwitchName=`` trees and ``BlockName=`` NVLink domains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError
from moesim.cluster.formats.text import read_lines
from moesim.cluster.formats.tree import Tree, tree_tables

_KEYS = {"switchname", "switches", "nodes", "linkspeed", "blockname", "blocksizes"}
_PAIR = re.compile(r"(?<!\w)(\w{1,32})\s{0,32}=\s{0,32}(\S+)")


def sniff(path: Path, head: bytes) -> bool:
    """Return whether the file looks like a topology.conf."""
    return (
        re.search(rb"^[ \t]{0,80}(?:SwitchName|BlockName)[ \t]{0,80}=", head, re.MULTILINE | re.IGNORECASE) is not None
    )


def read(path: Path, *, like: str | None = None, gpus_per_host: int | None = None) -> dict[str, Any]:
    """Return the tables of the tree.

    Parameters
    ----------
    like
        Preset whose nodes stand at the leaves.
    gpus_per_host
        GPUs of a host; None: those of a node of ``like``, or 4 where blocks are NVLink domains.

    Raises
    ------
    FormatError
        Names the line that is not understood.
    """
    tree = Tree(path)
    for number, line in enumerate(read_lines(path), 1):
        text = line.split("#", 1)[0].strip()
        if text:
            _line(tree, text, f"line {number}")
    return tree_tables(tree, like, gpus_per_host)


def _line(tree: Tree, text: str, place: str) -> None:
    pairs = {key.lower(): value for key, value in _PAIR.findall(text)}
    unknown = sorted(set(pairs) - _KEYS)
    if unknown or _PAIR.sub("", text).strip() or not pairs:
        raise FormatError(
            tree.path,
            place,
            f"expected SwitchName=, BlockName=, Nodes= or Switches=, got {(unknown or [text])[0][:60]!r}",
        )
    if "switchname" in pairs:
        for switch in tree.names(pairs["switchname"], place):
            if switch in tree.switches:
                raise FormatError(
                    tree.path, place, f"switch {switch[:60]} is described twice ({tree.switches[switch]})"
                )
            tree.switches[switch] = place
            for child in tree.names(pairs.get("switches", ""), place):
                tree.hang(child, switch, place)
            for host in tree.names(pairs.get("nodes", ""), place):
                tree.hosts.setdefault(host, place)
                tree.hang(host, switch, place)
    elif "blockname" in pairs:
        for host in tree.names(pairs.get("nodes", ""), place):
            tree.hosts.setdefault(host, place)
            if tree.domain.setdefault(host, pairs["blockname"]) != pairs["blockname"]:
                raise FormatError(tree.path, place, f"{host[:60]} is in two blocks; a host has one NVLink domain")
    elif "blocksizes" not in pairs:
        raise FormatError(tree.path, place, "expected SwitchName= or BlockName=")
