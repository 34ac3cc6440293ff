"""An InfiniBand fabric as its subnet shows it: switches, channel adapters, cables; and the tables that follow."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError
from moesim.base.units import count
from moesim.cluster.formats.like import Like
from moesim.cluster.formats.node import NodeFacts, inside, nic_groups
from moesim.cluster.formats.text import clean, distinct, dotless
from moesim.cluster.schema import MAX_RANKS

# data rate of one lane in Gb/s
LANE = {
    "SDR": 2.0, "DDR": 4.0, "QDR": 8.0, "FDR10": 10.0, "FDR": 13.64, "EDR": 25.0, "HDR": 50.0, "NDR": 100.0,
    "XDR": 200.0,
}  # fmt: skip
MOST_CABLES = 60_000
_NAMELESS = re.compile(r"Mellanox Technologies|ConnectX|MT\d{4}|Infiniscale|^$", re.IGNORECASE)


@dataclass(frozen=True)
class Adapter:
    """A channel adapter.

    Attributes
    ----------
    key
        What cables call it.
    host, device
        From its description, ``"host mlx5_0"``; an empty host where the adapter does not tell its own.
    guid
        ``sys_image_guid``; None where the dump does not say.
    line
        Where it is described.
    """

    key: str
    host: str
    device: str
    guid: int | None
    line: int


@dataclass(frozen=True)
class Cable:
    """A cable between two things; bytes/s."""

    a: str
    b: str
    rate: float
    line: int


@dataclass(frozen=True)
class Fabric:
    """Switches by key and name, adapters by key, cables once each."""

    path: Path
    switches: dict[str, str]
    adapters: dict[str, Adapter]
    cables: tuple[Cable, ...]


def describe_adapter(key: str, text: str, guid: int | None, line: int) -> Adapter | None:
    """Return the adapter of a description; None for the aggregation node inside a switch (SHARP)."""
    if "aggregation node" in text.lower():
        return None
    words = text.split()
    if _NAMELESS.search(text) or len(words) > 3:
        return Adapter(key, "", "", guid, line)
    return Adapter(key, words[0].strip("'"), words[-1] if len(words) > 1 else "", guid, line)


def rate_of(text: str, path: Path, line: int) -> float:
    """Return bytes/s of a width and speed such as ``4xNDR``.

    Raises
    ------
    FormatError
        If there is no such speed.
    """
    match = re.fullmatch(r"(\d{1,2})x([A-Z0-9]+)", text)
    if match is None or match[2] not in LANE:
        raise FormatError(path, f"line {line}", f"expected width and speed such as 4xNDR, got {text[:40]!r}")
    return int(match[1]) * LANE[match[2]] * 1e9 / 8


@dataclass(frozen=True)
class _Host:
    name: str
    gpus: int
    facts: NodeFacts | None
    ports: tuple[tuple[tuple[int, ...], Adapter], ...]  # GPUs and the adapter that they use


def fabric_tables(
    fabric: Fabric, like_name: str | None, templates: dict[str, NodeFacts] | None = None, notes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the tables of a fabric and the nodes on it.

    Parameters
    ----------
    templates
        What is known of the inside of hosts, by host; without it every adapter is taken for the NIC of one GPU.
    """
    told = list(notes)
    hinted = next(iter(templates.values())).like if templates else "h100-4x8-rail"
    like = Like(like_name or hinted)
    tool = fabric.path.name
    if like_name is None:
        told.append(f"{tool} does not tell GPUs, memory and latencies: taken from {like.name}; set `like`")
    hosts = _hosts(fabric, templates, told)
    if not hosts:
        raise FormatError(
            fabric.path, "", 'no channel adapter names its host (as in "host1 mlx5_0"), so there are no nodes'
        )
    if sum(host.gpus for host in hosts) > MAX_RANKS:
        raise FormatError(fabric.path, "", f"more than {MAX_RANKS:,} GPUs; give the dump of a smaller cluster")
    names = dict(zip((host.name for host in hosts), distinct(dotless(host.name) for host in hosts), strict=True))
    switch_names = _switch_names(fabric, set(names.values()))
    vertex: dict[str, str] = dict(switch_names)
    switches = list(switch_names.values())
    links: list[dict[str, Any]] = []
    tier: dict[str, Any] = {
        "node": {key: value for key, value in (like.tier("node") or {}).items() if key != "nics_on"}
    }
    for host in hosts:
        name = names[host.name]
        if host.facts is not None:
            own, inner_switches, inner_links = inside(host.facts, like, name)
            switches += inner_switches
            links += inner_links
            if own is not None:
                tier = _one_tier(tier, own, like, host, fabric)
        for number, (gpus, adapter) in enumerate(host.ports):
            vertex[adapter.key] = f"{name}.nic{number}"
            switches.append(vertex[adapter.key])
            pcie = like.link("pcie", None, "")
            links += [{"ends": [f"{name}.gpu{gpu}", vertex[adapter.key]], "tier": "pcie", **pcie} for gpu in gpus]
    links += _cable_links(fabric, like, vertex, switch_names)
    gpu = like.gpu
    return {
        "schema": 1,
        "name": dotless(fabric.path.stem),
        "about": f"imported from {clean(tool)}",
        "notes": told,
        "switches": switches,
        "gpu": gpu,
        "tier": tier,
        "node": [{"name": names[host.name], "gpus": host.gpus} for host in hosts],
        "link": links,
    }


def _one_tier(tier: dict[str, Any], own: dict[str, Any], like: Like, host: _Host, fabric: Fabric) -> dict[str, Any]:
    from moesim.cluster.overlay import overlay

    if not own:
        return {}
    mine = overlay({"node": like.tier("node") or {}}, {"node": own}, fabric.path.name)
    mine["node"].pop("nics_on", None)
    if tier and "derived" in str(tier["node"].get("source")) and tier["node"]["bandwidth"] != mine["node"]["bandwidth"]:
        raise FormatError(fabric.path, f"host {host.name}", "nodes have different NVLinks; import them one by one")
    return mine


def _hosts(fabric: Fabric, templates: dict[str, NodeFacts] | None, told: list[str]) -> list[_Host]:
    nameless = [adapter for adapter in fabric.adapters.values() if not adapter.host]
    cabled = {end for cable in fabric.cables for end in (cable.a, cable.b)}
    by_host: dict[str, list[Adapter]] = {}
    for adapter in fabric.adapters.values():
        if adapter.host and adapter.key in cabled:
            by_host.setdefault(adapter.host, []).append(adapter)
    hosts = []
    without: list[str] = []
    for name in sorted(by_host, key=natural):
        adapters = sorted(by_host[name], key=lambda adapter: natural(adapter.device))
        facts = (templates or {}).get(name)
        if facts is None and templates:
            without.append(name)
            continue
        if facts is None:
            each = tuple(((i,), adapter) for i, adapter in enumerate(adapters))
            hosts.append(_Host(name, len(adapters), None, each))
        else:
            ports, lost = _ports(facts, adapters, name)
            told += lost
            hosts.append(_Host(name, facts.gpus, facts, ports))
    if nameless:
        told.append(
            f"left out, as they do not name their host: {count(len(nameless), 'channel adapter')}, the first in line "
            f"{nameless[0].line} of {fabric.path.name}"
        )
    if without:
        told.append(f"left out, as without a topology file: {count(len(without), 'host')}, the first {without[0]}")
    if not templates:
        told.append(
            "each channel adapter is taken for the NIC of one GPU; a node is a host; set what is inside by `tier`"
        )
    return hosts


def _ports(
    facts: NodeFacts, adapters: list[Adapter], host: str
) -> tuple[tuple[tuple[tuple[int, ...], Adapter], ...], list[str]]:
    """Return which GPUs use which adapters: NICs found by GUID, or by device name on the twins of a node."""
    by_guid = {adapter.guid: adapter for adapter in adapters if adapter.guid is not None}
    by_name = {adapter.device: adapter for adapter in adapters}
    ports: list[tuple[tuple[int, ...], Adapter]] = []
    lost = []
    for gpus, nics in nic_groups(facts):
        for nic in nics:
            adapter = by_guid.get(nic.guid or -1) or by_name.get(nic.name)
            if adapter is None:
                lost.append(f"NIC {clean(nic.name)} of {host} is not on the fabric: left out")
            else:
                ports.append((tuple(gpus), adapter))
    return tuple(ports), lost


def _switch_names(fabric: Fabric, taken: set[str]) -> dict[str, str]:
    names = distinct([*sorted(taken), *(dotless(_short(name)) for name in fabric.switches.values())])[len(taken) :]
    return dict(zip(fabric.switches, names, strict=True))


def _short(name: str) -> str:
    """Return ``A09-LEAF-04`` of ``MF0;A09-LEAF-04:MQM9701/U1``."""
    return name.split(";", 1)[-1].split(":", 1)[0] or "switch"


def _cable_links(fabric: Fabric, like: Like, vertex: dict[str, str], switches: dict[str, str]) -> list[dict[str, Any]]:
    tool = fabric.path.name
    out = []
    kinds: dict[tuple[str, float], dict[str, Any]] = {}
    for cable in fabric.cables:
        if cable.a not in vertex or cable.b not in vertex:
            continue
        kind = "spine" if cable.a in switches and cable.b in switches else "nic"
        if (kind, cable.rate) not in kinds:
            kinds[kind, cable.rate] = like.link(kind, cable.rate, f"measured: link speed in {tool}")
        lower, upper = (cable.a, cable.b) if cable.b in switches else (cable.b, cable.a)
        out.append({"ends": [vertex[lower], vertex[upper]], "tier": kind, **kinds[kind, cable.rate]})
    # bottom up: the NICs before what is above the leaves
    return sorted(out, key=lambda link: link["tier"] != "nic")


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key in which host2 comes before host10."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d{1,18})", name))
