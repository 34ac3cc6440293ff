"""What a running module is to the rest of moesim: its ModelSpec, and the origin of what is captured from it."""

from __future__ import annotations

import dataclasses
import platform
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moesim.base.errors import InputError
from moesim.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn


def describe_model(
    model: nn.Module, layers: Sequence[Sequence[int]], experts: Sequence[Sequence[int]], top_k: int
) -> ModelSpec:
    """Return the spec of a module that was captured.

    It is the module's own ``spec``, or follows from the ``config`` of transformers. What was seen at run time, which
    layers route and to how many experts, goes before what a configuration says.

    Parameters
    ----------
    layers, experts
        Number of each MoE layer in its stack and of its experts (0 where not known), [towers][layers].
    top_k
        Picks of a token.

    Raises
    ------
    InputError
        If there is neither a spec nor a configuration, and the number of experts is not known.
    """
    own = getattr(model, "spec", None)
    if isinstance(own, ModelSpec):
        return own
    seen = max((number for tower in experts for number in tower), default=0)
    spec, problem = _from_config(model)
    if spec is None and not seen:
        raise InputError(f"capture: {type(model).__name__} does not tell its number of experts ({problem}); give spec=")
    if spec is None:
        hidden, intermediate = _widths(model, seen)
        ids, total = _stacked(layers, None)
        return ModelSpec(
            type(model).__name__, ids, total, experts=seen, top_k=top_k, hidden=hidden, intermediate=intermediate
        )
    ids, total = _stacked(layers, spec)
    return dataclasses.replace(spec, layer_ids=ids, num_hidden_layers=total, experts=seen or spec.experts, top_k=top_k)


def origin_of(model: nn.Module, every: int = 1) -> dict[str, Any]:
    """Return who captured what, with which versions."""
    import torch

    from moesim.base.version import VERSION

    facts: dict[str, Any] = {
        "captured_by": f"moesim {VERSION}",
        "model": _name(model),
        "class": type(model).__name__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "synthetic": False,
    }
    if (config := getattr(model, "config", None)) is not None and hasattr(config, "transformers_version"):
        import transformers

        facts["transformers"] = transformers.__version__
        if getattr(config, "_experts_implementation", None):
            facts["experts_implementation"] = str(config._experts_implementation)
    return facts if every == 1 else facts | {"every": every}


def _name(model: nn.Module) -> str:
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "").rstrip("/")
    return name.rsplit("/", 1)[-1] or type(model).__name__


def _from_config(model: nn.Module) -> tuple[ModelSpec | None, str]:
    """Return the spec of a transformers configuration, or why there is none."""
    from moesim.hf_config import from_config

    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return None, "no configuration"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        facts = config.get_text_config().to_dict() if hasattr(config, "get_text_config") else config.to_dict()
    try:
        return from_config(facts, name=_name(model)), ""
    except InputError as error:
        return None, str(error)


def _stacked(layers: Sequence[Sequence[int]], spec: ModelSpec | None) -> tuple[tuple[int, ...], int]:
    """Return layer ids of all towers, one above the other as an encoder and a decoder, and the number of layers."""
    known = spec.num_hidden_layers if spec is not None else 0
    if len(layers) == 1:
        return tuple(layers[0]), max(known, layers[0][-1] + 1)
    height = known // len(layers)
    ids: list[int] = []
    top = 0
    for tower in layers:
        ids += [top + layer for layer in tower]
        top += max(height, tower[-1] + 1)
    return tuple(ids), max(known, top)


def _widths(model: nn.Module, experts: int) -> tuple[int, int]:
    """Return the width of a model and of an expert by its weights: the largest [experts, a, b], or else 1 and 1."""
    best = (0, 1, 1)
    for weight in model.parameters():
        if weight.dim() == 3 and weight.shape[0] == experts:
            best = max(best, (weight.numel(), int(min(weight.shape[1:])), int(max(weight.shape[1:]))))
    hidden = int(getattr(getattr(model, "config", None), "hidden_size", 0) or best[1])
    size = best[0] // max(experts, 1)
    return hidden, max(1, size // hidden // (2 if size else 1))
