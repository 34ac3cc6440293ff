"""Which model a foreign file was recorded on: importers ask the user where the file does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.errors import FormatError, InputError
from moesim.spec import PRESETS, ModelSpec
from moesim.trace.trace import layer_subset

_KINDS: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    "model": ((str, ModelSpec), "the name of a preset"),
    "experts": ((int,), "a number"),
    "layers": ((Sequence,), "a list of layer numbers such as [0, 7, 15]"),
    "origin": ((Mapping,), "facts by name"),
}


def check_options(**options: Any) -> None:
    """Raise InputError unless options are of the kind they should be; those not named above are text."""
    for name, value in options.items():
        kinds, what = _KINDS.get(name, ((str,), "text"))
        fits = isinstance(value, kinds) and (name != "layers" or _numbers(value))
        if value is not None and not fits:
            raise InputError(f"option {name}: expected {what}, got {value!r}")


def _numbers(value: Any) -> bool:
    return not isinstance(value, str) and all(isinstance(number, (int, np.integer)) for number in value)


def resolve(
    path: str | Path,
    place: str,
    found: tuple[int, int],
    *,
    counted: bool,
    largest: int,
    model: str | ModelSpec | None,
    experts: int | None,
    dims: str | None,
    layers: Sequence[int] | None,
) -> ModelSpec:
    """Return the spec of the layers that a file holds.

    Parameters
    ----------
    place
        Name of the array, for messages.
    found
        Layers and last axis of the array: top_k, or experts where it holds counts.
    counted
        Whether it holds counts.
    largest
        Largest expert id that occurs, for messages.
    model
        Name of a preset, or a spec.
    experts, dims
        Instead of a model: its number of experts, and the preset whose dimensions to use.
    layers
        MoE layers (ordinals) that the file holds, where it holds only some of the model's.

    Raises
    ------
    InputError
        If the model is not given: the largest id that occurs does not tell the number of experts.
    FormatError
        If the arrays do not fit the model.
    """
    L, last = found
    if model is None:
        if experts is None or dims is None or counted:
            raise InputError(
                f"the file does not say which model was recorded, and the largest id that occurs ({largest}) does not "
                f"tell its number of experts: give model= (one of {', '.join(PRESETS)})"
                + ("" if counted else ", or experts= together with dims= (the preset whose dimensions to use)")
            )
        bare = ModelSpec(Path(path).stem, tuple(range(L)), L, experts=experts, top_k=last, hidden=1, intermediate=1)
        return bare.at_dimensions(ModelSpec.preset(dims))
    spec = ModelSpec.preset(model) if isinstance(model, str) else model
    if experts is not None and experts != spec.experts:
        raise InputError(
            f"option experts: {spec.name} has {spec.experts} experts, not {experts}; leave one of them out"
        )
    if layers is not None:
        spec = layer_subset(spec, layers)
    if spec.layers != L:
        if spec.num_hidden_layers == L:
            advice = f"it seems to hold dense layers too: keep layers {spec.layer_ids[0]}..{spec.layer_ids[-1]} of it"
        else:
            advice = "say with layers= which of its MoE layers these are, or give another model="
        raise FormatError(path, place, f"expected the {spec.layers} MoE layers of {spec.name}, found {L}; {advice}")
    wanted, what = (spec.experts, "experts") if counted else (spec.top_k, "picks a token")
    if last != wanted:
        raise FormatError(path, place, f"expected {wanted} {what} as in {spec.name}, found {last}; give another model=")
    return spec
