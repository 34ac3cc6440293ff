"""Laying changes over a description: what `base = ...` in a file and what-if edits have in common.

Tables merge key by key, everything else is replaced. What a change makes stale goes with it: a new bandwidth
keeps the ratio of the old effective one, a constant without a new source says who set it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.base.errors import InputError
from moesim.base.units import parse
from moesim.cluster.schema import CONSTANTS

# a key that is given replaces these keys of the table below
_REPLACES = {
    "nodes": ("node",),
    "node": ("nodes",),
    "rail": ("leaf",),
    "leaf": ("rail",),
    "oversubscription": ("bandwidth", "effective"),
}
_CONSTANTS = frozenset(CONSTANTS)


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return ``base`` with ``changes`` laid over it; ``origin`` names the changes in the sources."""
    out = dict(base)
    for key in changes:
        for stale in _REPLACES.get(key, ()):
            if stale not in changes:
                out.pop(stale, None)
    if "bandwidth" in changes and "oversubscription" not in changes:
        out.pop("oversubscription", None)
    for key, value in changes.items():
        below = out.get(key)
        merge = isinstance(value, Mapping) and isinstance(below, Mapping) and key not in ("source", "degrade")
        out[key] = overlay(below, value, origin) if merge else value  # type: ignore[arg-type]
    _keep_ratio(base, changes, out)
    if _other_model(base, changes) and "flops_bf16" in changes and "flops_fp8" not in changes:
        out.pop("flops_fp8", None)  # whether the other model has fp8 units is not for the old one to say
    _tell_sources(base, changes, out, origin)
    return out


def _other_model(base: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    return "model" in base and changes.get("model", base["model"]) != base["model"]


def _keep_ratio(base: Mapping[str, Any], changes: Mapping[str, Any], out: dict[str, Any]) -> None:
    if "bandwidth" not in changes or "effective" in changes or not {"bandwidth", "effective"} <= set(base):
        return
    try:
        old, effective, new = (
            parse(value, "bandwidth", "") for value in (base["bandwidth"], base["effective"], changes["bandwidth"])
        )
    except InputError:
        return  # the check of the whole says what is wrong, with its place
    if old > 0:
        out["effective"] = f"{new * effective / old / 1e9:.9g} GB/s"


def _tell_sources(base: Mapping[str, Any], changes: Mapping[str, Any], out: dict[str, Any], origin: str) -> None:
    constants = _CONSTANTS & set(out)
    changed = {key for key in constants if key not in base or base[key] != out[key]}
    other = _other_model(base, changes)
    if not base or not (changed or other or "source" in changes):
        return
    sources = _by_key(base.get("source"), constants)
    fresh = _by_key(changes.get("source"), set(changes))
    if other:
        sources |= dict.fromkeys(constants - set(changes), f"assumed: that of {base['model']}")
    for key in changed:
        sources[key] = f"assumed: set by {origin}"
        if key == "effective" and key not in changes:
            sources[key] = f"derived: the ratio of effective to nominal before {origin}"
    out["source"] = {key: text for key, text in {**sources, **fresh}.items() if key in constants}


def _by_key(source: Any, constants: set[str] | frozenset[str]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return dict(source)
    return {} if source is None else dict.fromkeys(sorted(constants & _CONSTANTS), source)
