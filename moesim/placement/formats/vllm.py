"""The map that moesim's plugin for vLLM installs: our own JSON file with an expert in every slot.

vLLM 0.33 reads no placement from a file; :mod:`moesim.engines.vllm` gives it this one.
"""

from __future__ import annotations

from pathlib import Path

from moesim.placement.formats import native, require_whole
from moesim.placement.placement import Placement
from moesim.spec import ModelSpec

sniff = native.sniff


def read(path: Path, *, ranks: int | None = None, spec: ModelSpec | None = None) -> Placement:
    """Read a map.

    Raises
    ------
    FormatError
        If the file is none of ours.
    InputError
        If a slot is empty.
    """
    placement = native.read(path, ranks=ranks, spec=spec)
    require_whole(placement, "vLLM")
    return placement


def write(placement: Placement, path: Path, *, spec: ModelSpec | None = None) -> None:
    """Write a map.

    Raises
    ------
    InputError
        If a slot is empty.
    """
    require_whole(placement, "vLLM")
    native.write(placement, path, spec=spec)
