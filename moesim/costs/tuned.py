"""Constants that a topology file sets itself, as `moesim calibrate` measures them, in place of the published ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.base.units import parse
from moesim.costs.constants import Constant

if TYPE_CHECKING:
    from moesim.cluster import Cluster

_KINDS = {"floor": "time", "read": "time", "launch": "time", "bandwidth": "bandwidth"}


def is_tuned(cluster: Cluster, name: str) -> bool:
    """Return whether the cluster's description sets a constant."""
    held = cluster.description.constants
    return held is not None and getattr(held, name) is not None


def tuned(cluster: Cluster, name: str, default: Constant) -> Constant:
    """Return the constant that the cluster's description sets, else the published one.

    Parameters
    ----------
    name
        Key in ``[constants]`` of a topology file.
    default
        What holds where the file is silent.
    """
    held = cluster.description.constants
    value = None if held is None else getattr(held, name)
    if held is None or value is None:
        return default
    kind = _KINDS.get(name.rsplit("_", 1)[-1])
    number = float(value) if kind is None else parse(value, kind, f"constants.{name}")
    source = held.source.get(name) if isinstance(held.source, dict) else held.source
    tag, _, text = (source or "assumed: no source given").partition(": ")
    return Constant(number, tag, f"{text} ({cluster.name})")
