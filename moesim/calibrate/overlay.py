"""Writing what was fitted: a topology file of a few lines over its base, with provenance and residuals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from moesim.base.errors import InputError
from moesim.base.files import write_text
from moesim.base.units import count
from moesim.base.version import VERSION
from moesim.calibrate.fit import Fit
from moesim.cluster.formats.toml import dumps
from moesim.cluster.presets import preset_names


def left(fit: Fit) -> list[str]:
    """Return a line for each reason why constants were not fitted, with their keys."""
    keys: dict[str, list[str]] = {}
    for key, reason in fit.not_fitted:
        keys.setdefault(reason, []).append(key)
    return [f"not fitted, {reason}: {', '.join(group)}" for reason, group in keys.items()]


def overlay(fit: Fit, base: str, name: str) -> dict[str, Any]:
    """Return the tables of a topology file that lays the fitted constants over ``base``."""
    tables: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "base": base,
        "about": f"{base}, calibrated by moesim {VERSION}",
        "notes": left(fit),
    }
    for item in fit.fitted:
        *place, key = item.key.split(".")
        table = tables
        for part in place:
            table = table.setdefault(part, {})
        table[key] = item.value
        stands = f", stands at its {item.limit} limit" if item.limit else ""
        table.setdefault("source", {})[key] = (
            f"measured: {count(item.observations, 'observation')} of {', '.join(item.sources)}; mean error "
            f"{item.error:.1%} (before {item.error_before:.1%} with {item.before}){stands}"
        )
    return tables


def base_of(topology: str, path: str | Path) -> str:
    """Return how an overlay at ``path`` names the topology that it is laid over.

    Raises
    ------
    InputError
        If that is the overlay itself.
    """
    where = Path(path).resolve()
    base = topology
    if topology not in preset_names():
        base = os.path.relpath(Path(topology).resolve(), where.parent)
    if (where.parent / base).resolve() == where:
        raise InputError(f"{path}: is the topology that is calibrated, and what is fitted refers to it; name another")
    return base


def write_overlay(fit: Fit, topology: str, path: str | Path) -> None:
    """Write the overlay atomically; ``solve``, ``simulate`` and ``compare`` take it as a topology.

    Parameters
    ----------
    topology
        Preset or file that was calibrated, as it was named; a file is referred to from where the overlay lies.

    Raises
    ------
    InputError
        If the overlay would be written over that file.
    """
    where = Path(path)
    write_text(where, dumps(overlay(fit, base_of(topology, where), where.stem)))
