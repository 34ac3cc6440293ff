"""Exporting a placement: check the engine's rules, write the file, read it back."""

from __future__ import annotations

from pathlib import Path

from numpy.typing import ArrayLike

from moesim.base.errors import FormatError
from moesim.placement.formats import PLACEMENT_FORMATS, read_placement, write_placement
from moesim.placement.launch import Launch, engine_formats, launch
from moesim.placement.placement import Placement
from moesim.spec import ModelSpec


def export(
    placement: Placement,
    path: str | Path,
    format: str,
    *,
    spec: ModelSpec | None = None,
    policy: str | None = None,
    node: ArrayLike | None = None,
    architecture: str | None = None,
) -> Launch | None:
    """Write a placement and return how to start the engine that loads it; see :func:`moesim.placement.launch.launch`.

    Nothing is written where a rule of the engine is broken. What was written is read back and compared.

    Returns
    -------
    Launch or None
        None for formats that no engine loads.

    Raises
    ------
    InputError
        If a rule is broken, or the placement cannot be written in that format.
    """
    PLACEMENT_FORMATS.get(format)
    result = None
    if format in engine_formats():
        result = launch(
            placement, str(path), format, spec=spec, policy=policy, node=node, architecture=architecture
        )  # fmt: skip
    write_placement(placement, path, format, spec=spec)
    back = read_placement(path, format, ranks=placement.ranks, spec=spec or _model_of(placement))
    if back.digest != placement.digest:
        raise FormatError(path, "", f"read back as {back!r}, not {placement!r}; do not use the file and report this")
    return result


def _model_of(placement: Placement) -> ModelSpec | None:
    """Return as much of a model as a placement knows."""
    if placement.layer_ids is None or placement.num_hidden_layers is None:
        return None
    return ModelSpec(
        "model", placement.layer_ids, placement.num_hidden_layers, placement.num_experts,
        top_k=1, hidden=1, intermediate=1, left_out=placement.left_out,
    )  # fmt: skip
