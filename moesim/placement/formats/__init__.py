"""Placement files: what this project and serving engines load.

A format is a module with three functions; others register theirs in the entry-point group
``moesim.placement_formats``. ``context`` holds what a file may not say itself: ``ranks`` and ``spec``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from moesim.base.errors import FormatError, InputError
from moesim.base.registry import Registry
from moesim.placement.placement import EMPTY, Placement
from moesim.spec import ModelSpec


class PlacementFormat(Protocol):
    """A module that reads and writes one kind of file."""

    def sniff(self, path: Path) -> bool:
        """Return whether the file looks like this format; never raises for a readable file."""
        ...

    def read(self, path: Path, *, ranks: int | None = None, spec: ModelSpec | None = None) -> Placement:
        """Read a placement; ``ranks`` and ``spec`` where the file does not tell them."""
        ...

    def write(self, placement: Placement, path: Path, *, spec: ModelSpec | None = None) -> None:
        """Write a placement, or raise where a reader would misread it."""
        ...


PLACEMENT_FORMATS: Final[Registry[PlacementFormat]] = Registry(
    "placement format",
    {
        "json": "moesim.placement.formats.native",
        "sglang": "moesim.placement.formats.sglang",
        "eplb": "moesim.placement.formats.eplb",
        "trtllm": "moesim.placement.formats.trtllm",
        "vllm-ascend": "moesim.placement.formats.ascend",
        "vllm": "moesim.placement.formats.vllm",
        "vllm-41141": "moesim.placement.formats.vllm_41141",
        "vllm-49572": "moesim.placement.formats.vllm_49572",
        "csv": "moesim.placement.formats.table",
    },
    "moesim.placement_formats",
)


def read_placement(path: str | Path, format: str | None = None, **context: Any) -> Placement:
    """Read a placement.

    Parameters
    ----------
    format
        Name of the format; None looks into the file.
    context
        ``ranks``, ``spec``: what the file may not say itself.

    Raises
    ------
    FormatError
        If the file does not hold a placement of that format.
    """
    file = Path(path)
    if not file.is_file():
        raise FormatError(file, "", "no such file; give the path of a placement")
    if format is None:
        format = next((name for name in PLACEMENT_FORMATS.names() if PLACEMENT_FORMATS.get(name).sniff(file)), None)
        if format is None:
            known = ", ".join(PLACEMENT_FORMATS.names())
            raise FormatError(file, "", f"looks like no placement format; name one of {known} if it is one")
    return PLACEMENT_FORMATS.get(format).read(file, **context)


def write_placement(placement: Placement, path: str | Path, format: str = "json", **context: Any) -> None:
    """Write a placement; see :func:`read_placement` for ``context``."""
    PLACEMENT_FORMATS.get(format).write(placement, Path(path), **context)


def require_full(placement: Placement, engine: str) -> None:
    """Raise where an engine whose slots all hold an expert would meet an empty one."""
    if placement.empty_slots:
        layer, rank, slot = (int(i) for i in np.argwhere(placement.experts == EMPTY)[0])
        raise InputError(
            f"placement: layer {layer}, rank {rank}, slot {slot} is empty, and {engine} needs an expert in every slot; "
            "fill them with moesim.placement.fill_empty(placement, loads)"
        )


def require_whole(placement: Placement, engine: str) -> None:
    """Raise where an engine would meet an empty slot, or miss a layer of the model."""
    require_full(placement, engine)
    if placement.left_out:
        raise InputError(
            f"placement: holds {placement.layers} of the {placement.layers + placement.left_out} MoE layers of the "
            f"model, and {engine} needs all of them; record and plan them all"
        )
