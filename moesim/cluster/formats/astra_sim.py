"""Network files of ASTRA-sim's analytical backend: dimensions of Ring, FullyConnected or Switch.

Its ``bandwidth`` is called GB/s and computed with as GiB/s; ``latency`` is in ns per link.
"""

from __future__ import annotations

import math
import re
from itertools import combinations
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError, InputError
from moesim.base.files import write_text
from moesim.cluster.cluster import Cluster
from moesim.cluster.formats.like import Like, gb, us
from moesim.cluster.formats.safe_yaml import load_yaml
from moesim.cluster.formats.text import clean, dotless, read_text
from moesim.cluster.schema import MAX_RANKS

_GIB = 2.0**30
_KINDS = ("Ring", "FullyConnected", "Switch")
_KEYS = {"topology", "npus_count", "bandwidth", "latency"}
_MOST_LINKS = 60_000


def sniff(path: Path, head: bytes) -> bool:
    """Return whether the file looks like a network of ASTRA-sim."""
    return re.search(rb"^npus_count[ \t]{0,8}:", head, re.MULTILINE) is not None


def read(path: Path, *, like: str | None = None) -> dict[str, Any]:
    """Return the tables of the network: the first dimension is a node, the others connect nodes.

    Two dimensions of switches become a node switch and one leaf per rail, reached over the node first (``pxn``), as
    ASTRA-sim routes dimension by dimension; other shapes become free links and GPUs that forward.

    Parameters
    ----------
    like
        Preset with the GPU.

    Raises
    ------
    FormatError
        Names the key that is not understood.
    """
    kinds, counts, rates, delays = _dimensions(path)
    name = like or "h100-4x8-rail"
    tables: dict[str, Any] = {
        "schema": 1,
        "name": dotless(path.stem),
        "about": f"imported from {clean(path.name)}",
        "notes": [f"{path.name} tells nothing of the GPUs: [gpu] is that of {name}"],
        "nodes": math.prod(counts[1:]),
        "gpus_per_node": counts[0],
        "gpu": Like(name).gpu,
    }
    source = f"assumed: {clean(path.name)}"
    pairs = zip(rates, delays, strict=True)
    tiers = [{"bandwidth": gb(rate), "latency": us(delay), "source": source} for rate, delay in pairs]
    first = {**tiers[0], **({"mesh": True} if kinds[0] == "FullyConnected" else {})}
    if len(kinds) == 1 and kinds[0] != "Ring":
        return tables | {"tier": {"node": first}}
    if kinds == ["Switch", "Switch"] and delays[1] > delays[0]:
        return tables | {"tier": {"node": first, "rail": {**tiers[1], "pxn": True}}}
    links, switches = _links(kinds, counts, tiers, path)
    return tables | {"through_ranks": True, "switches": switches, "link": links}


def _dimensions(path: Path) -> tuple[list[str], list[int], list[float], list[float]]:
    data = load_yaml(read_text(path), path)
    if not isinstance(data, dict) or not data.keys() >= _KEYS:
        raise FormatError(path, "", f"expected the keys {', '.join(sorted(_KEYS))}")
    unknown = sorted(str(key) for key in data.keys() - _KEYS)
    if unknown:
        raise FormatError(path, unknown[0][:60], f"unknown key; expected {', '.join(sorted(_KEYS))}")
    size = len(data["topology"]) if isinstance(data["topology"], list) else 0
    for key in sorted(_KEYS):
        if not isinstance(data[key], list) or len(data[key]) != size or not 1 <= size <= 8:
            raise FormatError(path, key, "expected a list with one entry per dimension, 1 to 8 of them")
    for kind in data["topology"]:
        if kind not in _KINDS:
            raise FormatError(path, "topology", f"expected {', '.join(_KINDS)}, got {_show(kind)}")
    for count in data["npus_count"]:
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_RANKS:
            raise FormatError(path, "npus_count", f"expected whole numbers from 1 to {MAX_RANKS:,}, got {_show(count)}")
    if math.prod(data["npus_count"]) > MAX_RANKS:
        raise FormatError(path, "npus_count", f"more than {MAX_RANKS:,} GPUs in all; describe fewer")
    rates = [_number(value, path, "bandwidth", 1e-6) * _GIB for value in data["bandwidth"]]
    delays = [_number(value, path, "latency", 0.0) * 1e-9 for value in data["latency"]]
    return list(data["topology"]), list(data["npus_count"]), rates, delays


def _show(value: object) -> str:
    return repr(value)[:40] if isinstance(value, (str, float)) else type(value).__name__


def _number(value: Any, path: Path, key: str, least: float) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= 1e9:
        raise FormatError(path, key, f"expected numbers from {least:g} to 1e9, got {_show(value)}")
    return float(value)


def _links(
    kinds: list[str], counts: list[int], tiers: list[dict[str, Any]], path: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    total, stride = math.prod(counts), 1
    names = [f"node{i // counts[0]}.gpu{i % counts[0]}" for i in range(total)]
    links: list[dict[str, Any]] = []
    switches: list[str] = []
    for d, (kind, count, table) in enumerate(zip(kinds, counts, tiers, strict=True)):
        row = {**table, "tier": f"dim{d}"}
        for base in (i for i in range(total) if i // stride % count == 0):
            members = [names[base + k * stride] for k in range(count)]
            if count > 1 and kind == "Switch":
                switches.append(f"dim{d}.switch{base}")
                ends = [(member, switches[-1]) for member in members]
            elif kind == "Ring" and count > 2:
                ends = list(zip(members, [*members[1:], members[0]], strict=True))
            else:
                if count * count // 2 + len(links) > _MOST_LINKS:
                    raise FormatError(path, "npus_count", f"more than {_MOST_LINKS:,} links; describe fewer GPUs")
                ends = list(combinations(members, 2))
            links += [{"ends": list(pair), **row} for pair in ends]
            if len(links) > _MOST_LINKS:
                raise FormatError(path, "npus_count", f"more than {_MOST_LINKS:,} links; describe fewer GPUs")
        stride *= count
    return links, switches


def write(cluster: Cluster, path: str | Path) -> None:
    """Write the network file of a cluster whose shape ASTRA-sim can tell: equal nodes, one NIC per GPU, full spines.

    Raises
    ------
    InputError
        If the shape is another; says which.
    """
    write_text(path, dumps(cluster))


def dumps(cluster: Cluster) -> str:
    """Return the network file as text; see :func:`write`. Bandwidths are the effective ones."""
    description = cluster.description
    tier = description.tier
    sizes = {int((cluster.node == node).sum()) for node in range(cluster.nodes)}
    problem = None
    if tier.node is None or description.link or description.without or description.degrade or description.ranks:
        problem = "has free links, removed or degraded parts, or no [tier.node]"
    elif len(sizes) > 1 or (description.node is not None and len(description.node) > 1):
        problem = "has nodes that differ"
    elif cluster.nodes > 1 and (tier.rail is None or tier.rail.rails is not None or tier.rail.gpus_per_nic > 1):
        problem = "has no leaf per GPU of a node ([tier.rail])"
    elif cluster.nodes > 1 and tier.rail is not None and tier.rail.nodes_per_leaf not in (None, cluster.nodes):
        problem = "has several leaves per rail"
    if problem is not None or tier.node is None:
        raise InputError(f"cluster {cluster.name}: {problem}; ASTRA-sim's network file cannot tell that")
    names = list(cluster.link_tier)

    def of(kind: str) -> tuple[float, float]:
        k = names.index(kind)
        return float(cluster.link_bandwidth[k]), float(cluster.link_latency_s[k])

    dims = [("FullyConnected" if tier.node.mesh else "Switch", sizes.pop(), *of("node"))]
    if cluster.nodes > 1:
        rate, latency = of("rail")
        if "pcie" in names:
            rate, latency = min(rate, of("pcie")[0]), latency + of("pcie")[1]
        dims.append(("Switch", cluster.nodes, rate, latency))
    rows = {
        "topology": [kind for kind, *_ in dims],
        "npus_count": [str(count) for _, count, *_ in dims],
        "bandwidth": [repr(rate / _GIB) for *_, rate, _ in dims],
        "latency": [f"{latency * 1e9:.9g}" for *_, latency in dims],
    }
    head = f"# {cluster.name}; bandwidth in GiB/s (effective), latency in ns per link\n"
    return head + "".join(f"{key}: [ {', '.join(values)} ]\n" for key, values in rows.items())
