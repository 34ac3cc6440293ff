"""A folder with one fabric dump and the topology files of its nodes, joined into one cluster.

The key is the GUID of the NICs. NCCL writes the ``sys_image_guid`` of an adapter as a number of the host's byte order,
``ibnetdiscover`` in that of the network: on x86 and Arm hosts the eight bytes stand the other way round.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError
from moesim.base.units import count
from moesim.cluster.formats import iblinkinfo, ibnetdiscover, nccl_xml, nvidia_smi, recognise
from moesim.cluster.formats.fabric import Fabric, fabric_tables, natural
from moesim.cluster.formats.node import NodeFacts
from moesim.cluster.formats.text import dotless

_MOST_FILES = 20_000


def sniff(path: Path, head: bytes) -> bool:
    """Return False: only folders are joined."""
    return False


def read(path: Path, *, like: str | None = None) -> dict[str, Any]:
    """Return the tables of the fabric with the insides of its nodes.

    A single topology file stands for all hosts whose adapters have the names that it names.

    Parameters
    ----------
    like
        Preset with the constants that the files do not tell.

    Raises
    ------
    FormatError
        If the folder holds no fabric, several, or no topology file of a node.
    """
    fabrics: list[Fabric] = []
    nodes: list[NodeFacts] = []
    others: list[str] = []
    for number, file in enumerate(sorted(path.iterdir())):
        if number > _MOST_FILES:
            raise FormatError(path, "", f"holds more than {_MOST_FILES:,} files; give a folder of dumps alone")
        kind = recognise(file) if file.is_file() else None
        if kind == "ibnetdiscover":
            fabrics.append(ibnetdiscover.fabric(file))
        elif kind == "iblinkinfo":
            fabrics.append(iblinkinfo.fabric(file))
        elif kind == "nccl-xml":
            nodes.append(nccl_xml.facts(file))
        elif kind == "nvidia-smi":
            nodes.append(nvidia_smi.facts(file))
        else:
            others.append(file.name)
    if len(fabrics) != 1:
        raise FormatError(
            path, "", f"expected one dump of ibnetdiscover or iblinkinfo in the folder, found {len(fabrics)}"
        )
    if not nodes:
        raise FormatError(path, "", "expected NCCL topology files or nvidia-smi matrices of nodes beside the fabric")
    tables = fuse(fabrics[0], nodes, like)
    if others:
        tables["notes"].append(
            f"left out, as no dump: {count(len(others), 'file')} of the folder, the first {others[0]}"
        )
    tables["name"] = dotless(path.resolve().name)
    return tables


def fuse(fabric: Fabric, nodes: list[NodeFacts], like: str | None = None) -> dict[str, Any]:
    """Return the tables of a fabric and the nodes on it, joined by GUID, else by host and device names.

    Raises
    ------
    FormatError
        If a node is on no host of the fabric.
    """
    host_of = {adapter.guid: adapter.host for adapter in fabric.adapters.values() if adapter.guid and adapter.host}
    known = {adapter.host for adapter in fabric.adapters.values() if adapter.host}
    templates: dict[str, NodeFacts] = {}
    notes: list[str] = []
    for node in nodes:
        notes += [note for note in node.notes if note not in notes]
        found = {host_of[nic.guid] for nic in node.nics if nic.guid in host_of}
        if len(found) > 1:
            raise FormatError(
                node.path, "", f"its NICs are on several hosts of {fabric.path.name}: {', '.join(sorted(found))}"
            )
        host = found.pop() if found else node.path.stem
        if host in templates:
            raise FormatError(node.path, "", f"host {host} has a topology file already: {templates[host].path.name}")
        if host in known:
            templates[host] = node
        elif len(nodes) > 1:
            guids = ", ".join(f"{nic.guid:016x}" for nic in node.nics[:2] if nic.guid)
            raise FormatError(
                node.path,
                "",
                f"no NIC of it ({guids or 'no GUIDs'}) is in {fabric.path.name}; name the file after its host",
            )
    if len(nodes) == 1:
        twins = _twins(fabric, nodes[0])
        notes.append(f"{nodes[0].path.name} stands for {count(len(twins), 'host')} whose adapters have the same names")
        templates = {**dict.fromkeys(twins, nodes[0]), **templates}
    if not templates:
        raise FormatError(nodes[0].path, "", f"none of its NICs is in {fabric.path.name}; name the file after its host")
    return fabric_tables(fabric, like, templates, tuple(notes))


def _twins(fabric: Fabric, node: NodeFacts) -> list[str]:
    devices: dict[str, set[str]] = {}
    for adapter in fabric.adapters.values():
        if adapter.host:
            devices.setdefault(adapter.host, set()).add(adapter.device)
    wanted = {nic.name for nic in node.nics}
    return sorted((host for host, own in devices.items() if wanted & own and own <= wanted), key=natural)
