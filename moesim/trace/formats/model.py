"""Which model a foreign file was recorded on: importers ask the user where the file does not say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import FormatError, InputError, UnknownName
from moesim.base.units import count
from moesim.presets import PRESETS
from moesim.spec import ModelSpec
from moesim.trace.trace import layer_subset

_KINDS: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    "model": ((str, Path, ModelSpec), "the name of a preset"),
    "experts": ((int,), "a number"),
    "start": ((int,), "a number"),
    "iteration": ((int,), "a number"),
    "request_tokens": ((int,), "a number"),
    "scale": ((int, float), "a number"),
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


def given_model(model: str | Path | ModelSpec | None) -> ModelSpec:
    """Return the model that the user names: a preset, a ``config.json`` or its folder, or a spec.

    Raises
    ------
    InputError
        If none is given.
    """
    if model is None:
        raise InputError(
            "the file does not say which model was recorded: give model= (its config.json, or one of "
            f"{', '.join(PRESETS)})"
        )
    return model if isinstance(model, ModelSpec) else ModelSpec.find(model)


def moe_rows(path: str | Path, place: str, rows: int, spec: ModelSpec) -> list[int]:
    """Return which rows of an array are MoE layers: engines record all decoder layers, some only those.

    Raises
    ------
    FormatError
        If the number of rows fits neither.
    """
    if rows == spec.num_hidden_layers:
        return list(spec.layer_ids)
    if rows == spec.layers:
        return list(range(rows))
    raise FormatError(
        path,
        place,
        f"expected the {count(spec.num_hidden_layers, 'decoder layer')} of {spec.name} or its "
        f"{count(spec.layers, 'MoE layer')}, found {rows}; give another model=",
    )


def moe_part(path: str | Path, place: str, found: Array, spec: ModelSpec) -> Array:
    """Return the MoE layers of counts [any, layers, any], of which the rows of dense layers are empty.

    Raises
    ------
    FormatError
        If the number of layers fits the model in no way, or a layer that is dense in it was routed.
    """
    rows = moe_rows(path, place, found.shape[1], spec)
    # engines leave zeros there: anything else was recorded from a model with other dense layers
    routed = np.setdiff1d(np.flatnonzero((found > 0).any(axis=(0, 2))), rows)
    if len(routed):
        raise FormatError(
            path,
            place,
            f"decoder layer {routed[0]} is dense in {spec.name}, but tokens were routed in it; give another model=",
        )
    return found[:, rows]


NUMBERINGS: Final = ("decoder", "decoder+1", "ordinal")
"""How files number layers: by decoder layer from 0, from 1, or by MoE layer from 0."""


def numbered_layers(
    path: str | Path, place: str, numbers: Iterable[int], spec: ModelSpec, numbering: str | None
) -> tuple[ModelSpec, list[int]]:
    """Return the spec of the layers that a file names by number, and their numbers in the file, in order.

    Without ``numbering``, the numbers must be those of all MoE layers by one of the three ways.

    Raises
    ------
    InputError
        If there is no such numbering.
    FormatError
        If the numbers fit the model in no such way, or not in the one given.
    """
    found = sorted(set(numbers))
    named = {
        "decoder": list(spec.layer_ids),
        "decoder+1": [layer + 1 for layer in spec.layer_ids],
        "ordinal": list(range(spec.layers)),
    }
    if numbering is not None and numbering not in named:
        raise UnknownName("numbering of layers", numbering, NUMBERINGS)
    if numbering is None:
        numbering = next((way for way in NUMBERINGS if named[way] == found), None)
    if numbering is None:
        some = ", ".join(str(number) for number in found[:8]) + (", ..." if len(found) > 8 else "")
        raise FormatError(
            path,
            place,
            f"its layer numbers ({some}) are not all {count(spec.layers, 'MoE layer')} of {spec.name}; give another "
            f"model=, or say how they count with numbering= ({', '.join(NUMBERINGS)})",
        )
    known = named[numbering]
    if foreign := [number for number in found if number not in known]:
        raise FormatError(
            path, place, f"layer {foreign[0]} is no MoE layer of {spec.name} when layers count as {numbering!r}"
        )
    return layer_subset(spec, [known.index(number) for number in found]), found


def resolve(
    path: str | Path,
    place: str,
    found: tuple[int, int],
    *,
    counted: bool,
    largest: int,
    model: str | Path | ModelSpec | None,
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
        Name of a preset, the model's config.json, or a spec.
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
                f"tell its number of experts: give model= (its config.json, or one of {', '.join(PRESETS)})"
                + ("" if counted else ", or experts= together with dims= (the preset whose dimensions to use)")
            )
        bare = ModelSpec(Path(path).stem, tuple(range(L)), L, experts=experts, top_k=last, hidden=1, intermediate=1)
        return bare.at_dimensions(ModelSpec.find(dims))
    spec = given_model(model)
    if experts is not None and experts != spec.experts:
        raise InputError(
            f"option experts: {spec.name} has {count(spec.experts, 'expert')}, not {experts}; leave one of them out"
        )
    if layers is not None:
        spec = layer_subset(spec, layers)
    if spec.layers != L:
        raise FormatError(
            path, place,
            f"expected the {count(spec.layers, 'MoE layer')} of {spec.name}, found {L}; say with layers= which of its "
            "MoE layers these are, or give another model=",
        )  # fmt: skip
    wanted, what = (spec.experts, "experts") if counted else (spec.top_k, "picks a token")
    if last != wanted:
        raise FormatError(path, place, f"expected {wanted} {what} as in {spec.name}, found {last}; give another model=")
    return spec
