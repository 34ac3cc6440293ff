"""What-if edits: change keys, take parts away, degrade links, and compile anew."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from moesim.base.errors import FormatError, InputError
from moesim.cluster.build import build
from moesim.cluster.cluster import Cluster
from moesim.cluster.overlay import overlay
from moesim.cluster.schema import check

_ORIGIN = "a what-if edit"
_PART = re.compile(r"([A-Za-z_][\w-]*)(?:\[(\d+)\])?")


def edited(cluster: Cluster, sets: Mapping[str, Any], without: Sequence[str], degrade: Mapping[str, float]) -> Cluster:
    """Return a changed copy; see :meth:`Cluster.edit`."""
    tables = cluster.description.model_dump(by_alias=True, exclude_none=True)
    for key, value in sets.items():
        tables = overlay(tables, _nested(tables, key, _literal(value)), _ORIGIN)
    # names refer to what is still there, so a second edit may not take the same thing away again
    if without:
        tables["without"] = [*tables.get("without", []), *without]
    if degrade:
        before = tables.get("degrade", {})
        tables["degrade"] = {**before, **{name: part * before.get(name, 1.0) for name, part in degrade.items()}}
    place = f"{cluster.name} (edited)"
    description = check(tables, place)
    ranks = description.ranks
    try:
        whole = build(description.model_copy(update={"ranks": None}))
        if ranks is None:
            return whole
        if whole.ranks != len(cluster.paths.node):
            raise InputError(
                "the edit changes how many GPUs there are, and this cluster is a part of them; edit the whole "
                "cluster, then restrict it"
            )
        return whole.restrict(ranks)
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(place, "", str(error)) from None


def assignment(text: str) -> tuple[str, Any]:
    """Split ``'tier.rail.bandwidth="800 GB/s"'`` of a command line into key and value.

    Raises
    ------
    InputError
        If there is no ``=``.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f'--set: expected KEY=VALUE such as tier.rail.bandwidth="800 GB/s", got {text!r}')
    return key.strip(), value.strip()


def _literal(value: Any) -> Any:
    """Return the TOML value that a text spells; text that is no TOML value (a shell ate its quotes) is itself."""
    if not isinstance(value, str):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return value


def _nested(tables: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return ``value`` inside tables, as the key says: ``tier.rail.bandwidth``, ``link[2].latency``."""
    head, _, rest = key.partition(".")
    match = _PART.fullmatch(head)
    if match is None:
        raise InputError(f"{key!r} is no key; write it as in the file: tier.rail.bandwidth, link[2].latency")
    name, index = match[1], match[2]
    below = tables.get(name)
    if index is None:
        if rest and below is not None and not isinstance(below, Mapping):
            raise InputError(f"{key}: {name} is no table; set {name} itself")
        return {name: _nested(below or {}, rest, value) if rest else value}
    if not isinstance(below, list) or int(index) >= len(below):
        last = len(below) - 1 if isinstance(below, list) else -1
        there = f"its entries are numbered 0 to {last}" if last >= 0 else "there are none"
        raise InputError(f"{key}: no such entry of {name}; {there}")
    row = below[int(index)]
    if rest:
        value = overlay(row, _nested(row, rest, value), _ORIGIN)
    return {name: [*below[: int(index)], value, *below[int(index) + 1 :]]}
