"""NVIDIA Topograph: its cluster models (YAML) and its topology graphs (JSON)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError
from moesim.cluster.formats.safe_yaml import load_yaml
from moesim.cluster.formats.text import read_text
from moesim.cluster.formats.tree import Tree, tree_tables

_DOMAINS = ("nvlink", "domain", "accelerator.topograph.run/domain", "network.topology.nvidia.com/accelerator")
_LIKE = {
    "GB200": "gb200-nvl72", "GB300": "gb300-nvl72", "H100": "h100-4x8-rail", "H200": "h200-4x8-rail",
    "B200": "b200-4x8-rail", "B300": "b300-4x8-rail", "A100": "a100-4x8-rail",
}  # fmt: skip


def sniff(path: Path, head: bytes) -> bool:
    """Return whether the file looks like a model or a graph of Topograph."""
    model = re.search(rb"^switches[ \t]{0,8}:", head, re.MULTILINE) and re.search(
        rb"\b(?:capacity_)?blocks[ \t]{0,8}:|\bnodes[ \t]{0,8}:", head
    )
    return bool(model) or (b'"instances"' in head and b'"network_layers"' in head)


def read(path: Path, *, like: str | None = None, gpus_per_host: int | None = None) -> dict[str, Any]:
    """Return the tables of the model or graph.

    Parameters
    ----------
    like
        Preset whose nodes stand at the leaves; None: the one of the model's GPU type.
    gpus_per_host
        GPUs of a host; None: those of a node of ``like``, or 4 where hosts have NVLink domains.

    Raises
    ------
    FormatError
        Names the entry that is not understood.
    """
    text = read_text(path)
    data = _mapping(_load(path, text), path, "the file")
    tree = Tree(path)
    hint = None
    if "instances" in data:
        _graph(tree, data)
    else:
        hint = _model(tree, data)
    return tree_tables(tree, like or hint, gpus_per_host)


def _load(path: Path, text: str) -> Any:
    if text.lstrip().startswith("{"):
        import json

        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(path, "", f"expected JSON: {error}") from None
    return load_yaml(text, path)


def _graph(tree: Tree, data: dict[str, Any]) -> None:
    for i, entry in enumerate(_list(data["instances"], tree.path, "instances")):
        place = f"instances[{i}]"
        row = _mapping(entry, tree.path, place)
        host = _text(row.get("id"), tree.path, f"{place}.id")
        if host in tree.hosts:
            raise FormatError(tree.path, place, f"{host[:60]} comes twice; name every instance once")
        tree.hosts[host] = place
        below = host
        for layer in _list(row.get("network_layers", []), tree.path, f"{place}.network_layers"):
            switch = _text(layer, tree.path, f"{place}.network_layers")
            tree.switches.setdefault(switch, place)
            tree.hang(below, switch, place)
            below = switch
        _domain(tree, row, [host], place)


def _model(tree: Tree, data: dict[str, Any]) -> str | None:
    named = data.get("switches") or {}
    if isinstance(named, dict):
        rows = [(str(key), _mapping(value or {}, tree.path, f"switches.{key}")) for key, value in named.items()]
    else:
        entries = [_mapping(row, tree.path, "switches") for row in _list(named, tree.path, "switches")]
        rows = [(_text(row.get("name"), tree.path, "switches.name"), row) for row in entries]
    over: dict[str, str] = {}
    for name, row in rows:
        place = f"switches.{name[:60]}"
        if name in tree.switches:
            raise FormatError(tree.path, place, "described twice; name every switch once")
        tree.switches[name] = place
        for child in _names(tree, row.get("switches", []), place):
            tree.hang(child, name, place)
        for block in _names(tree, row.get("capacity_blocks", []), place):
            over[block] = name
        _hosts_below(tree, _names(tree, row.get("nodes", []), place), name, place)
    kinds = set()
    blocks = data.get("blocks", data.get("capacity_blocks", []))
    for i, entry in enumerate(_list(blocks, tree.path, "blocks")):
        place = f"blocks[{i}]"
        row = _mapping(entry, tree.path, place)
        members = _names(tree, row.get("nodes", []), f"{place}.nodes")
        _hosts_below(tree, members, row.get("switch") or over.get(str(row.get("name"))), place)
        _domain(tree, row, members, place)
        kinds.add(str(row.get("type", "")).upper())
    fits = [_LIKE[kind] for kind in sorted(kinds) if kind in _LIKE]
    return fits[0] if len(fits) == 1 else None


def _hosts_below(tree: Tree, members: list[str], switch: Any, place: str) -> None:
    for host in members:
        tree.hosts.setdefault(host, place)
        if switch is not None:
            tree.hang(host, _text(switch, tree.path, f"{place}.switch"), place)


def _domain(tree: Tree, row: dict[str, Any], members: list[str], place: str) -> None:
    tables = [row, *(row.get(key) for key in ("labels", "annotations", "attributes"))]
    for table in tables:
        if not isinstance(table, dict):
            continue
        for key in _DOMAINS:
            if table.get(key):
                domain = _text(table[key], tree.path, f"{place}.{key}")
                for host in members:
                    if tree.domain.setdefault(host, domain) != domain:
                        raise FormatError(tree.path, place, f"{host[:60]} is in two NVLink domains")


def _names(tree: Tree, value: Any, place: str) -> list[str]:
    rows = _list(value, tree.path, place)
    return [name for text in rows for name in tree.names(_text(text, tree.path, place), place)]


def _text(value: Any, path: Path, place: str) -> str:
    if not isinstance(value, (str, int)) or isinstance(value, bool) or not str(value).strip():
        found = repr(value[:60]) if isinstance(value, str) else type(value).__name__
        raise FormatError(path, place, f"expected a name, got {found}")
    return str(value)


def _list(value: Any, path: Path, place: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > 100_000:
        raise FormatError(path, place, f"expected a list, got {type(value).__name__}")
    return value


def _mapping(value: Any, path: Path, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(path, place, f"expected named entries, got {type(value).__name__}")
    return value
