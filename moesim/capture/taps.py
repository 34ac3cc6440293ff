"""Where a torch model shows what it routes: found by how its modules are called, not by what they are named.

Since transformers 5.0 every block of experts is called with ``(hidden_states, top_k_index, top_k_weights)``: what its
router decided, after groups, biases and drops. That is recorded. A top-k of router logits would be another thing,
and wrong for routers with groups or a bias (DeepSeek, Kimi, GLM). Four families have another call and a rule here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moesim.base.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    Picked = tuple[Tensor, Tensor | None]

Record = Callable[["Tensor", "Tensor | None"], None]
"""Takes the experts and gate weights [tokens, top_k] of one forward pass."""
Picks = Callable[[str, "nn.Module"], "Callable[[Any, Any, Any], Picked] | None"]
"""Given a module and its name: None, or ``f(args, kwargs, output) -> (experts, weights)`` of a forward pass."""

_INDEX: Final = ("top_k_index", "router_indices", "selected_experts", "router_mask")
_WEIGHTS: Final = ("top_k_weights", "routing_weights", "router_probs")
_NUMBERED: Final = re.compile(r"(?:(.*?)\.)?(\d+)\.(.*)")
_COUNTS: Final = ("num_routed_experts", "n_routed_experts", "num_experts", "num_local_experts")


@dataclass(frozen=True)
class Tap:
    """One MoE layer of a model.

    Parameters
    ----------
    tower
        Which of the stacks of layers of the model it is in; tokens of one do not pass another (encoder and decoder).
    layer
        Number of the layer in its stack.
    experts
        Number of its experts, 0 where that cannot be seen.
    module
        The module that is watched.
    attach
        Called with a `Record`, starts watching and returns a function that stops it.
    """

    tower: str
    layer: int
    experts: int
    module: nn.Module
    attach: Callable[[Record], Callable[[], None]]


def find_taps(model: nn.Module, picks: Picks | None = None) -> list[list[Tap]]:
    """Return the MoE layers of a model, [towers][layers], both in their order.

    Parameters
    ----------
    picks
        Rule for modules that are not known here; where it is given, it alone decides.

    Raises
    ------
    InputError
        If there are none, or two modules claim one layer.
    """
    towers: dict[str, list[Tap]] = {}
    for name, module in model.named_modules():
        tap = _own(name, module) if picks is None else _given(name, module, picks)
        if tap is not None:
            towers.setdefault(tap.tower, []).append(tap)
    if not towers:
        raise InputError(
            f"{type(model).__name__} has no routers to capture: no experts that are called with (hidden_states, "
            "top_k_index, top_k_weights), no modules with `layer` and `recorder`; say with picks= what to watch"
        )
    for tower, taps in towers.items():
        taps.sort(key=lambda tap: tap.layer)
        layers = [tap.layer for tap in taps]
        if len(set(layers)) < len(layers):
            raise InputError(f"{type(model).__name__}, {tower or 'top level'}: two routers claim one layer of {layers}")
    return list(towers.values())


def place(name: str) -> tuple[str, int]:
    """Return the stack and the number of a layer by the name of a module in it: its first number.

    What follows the number belongs to the stack: text and vision experts of one layer see other tokens.
    """
    found = _NUMBERED.fullmatch(name)
    return (f"{found[1] or ''}.*.{found[3]}", int(found[2])) if found else (name, 0)


def _own(name: str, module: nn.Module) -> Tap | None:
    kind = type(module).__name__
    parameters = _parameters(type(module))
    tower, layer = place(name)
    experts = _count(module)
    if parameters[:1] == ("hidden_states",) and len(parameters) >= 3 and parameters[1] in _INDEX:
        if parameters[2] in _WEIGHTS:
            return Tap(tower, layer, experts, module, lambda record: _before(module, parameters, record))
    elif kind == "Llama4Router":
        # its experts compute every token and the router's scores are 0 where an expert was not picked
        return Tap(tower, layer, experts, module, lambda record: _after(module, _llama4, record))
    elif kind == "JetMoeTopKGating" and "self_attention" not in name:
        # attention has experts of its own in this family; only those of the feed-forward part are placed
        return Tap(tower, layer, experts, module, lambda record: _after(module, _jetmoe, record))
    return None


def _given(name: str, module: nn.Module, picks: Picks) -> Tap | None:
    read = picks(name, module)
    if read is None:
        return None
    tower, layer = place(f"{name}.")

    def attach(record: Record) -> Callable[[], None]:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            record(*_checked(name, read(args, kwargs, output)))

        return module.register_forward_hook(hook, with_kwargs=True).remove

    return Tap(tower, layer, _count(module), module, attach)


def _checked(name: str, found: Any) -> Picked:
    """Return what a rule of the user's read, if it has the shape that is recorded.

    Raises
    ------
    InputError
        If it has not; says what was found.
    """
    experts: Any = None
    weights: Any = None
    if isinstance(found, tuple | list) and len(found) == 2:
        experts, weights = found
    parts = [part for part in (experts, weights) if part is not None]
    if experts is None or experts.dim() != 2 or experts.is_floating_point() or parts[-1].shape != experts.shape:
        what = " and ".join(f"{part.dtype} {list(part.shape)}" for part in parts) or type(found).__name__
        raise InputError(
            f"capture: picks= must read (experts, weights) of {name}, integers [tokens, top_k] and the same shape or "
            f"None, found {what}; flatten sequences and keep a dimension for top_k"
        )
    return experts, weights


def _parameters(kind: type) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(kind.forward).parameters)[1:]  # type: ignore[attr-defined]
    except (TypeError, ValueError, AttributeError):
        return ()


def _count(module: nn.Module) -> int:
    for name in _COUNTS:
        value = getattr(module, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return next((int(weight.shape[0]) for weight in module.parameters() if weight.dim() == 3), 0)


def _before(module: nn.Module, parameters: Sequence[str], record: Record) -> Callable[[], None]:
    """Watch the arguments of a block of experts."""
    index_name, weights_name = parameters[1], parameters[2]
    read = {"router_mask": _nllb, "selected_experts": _switch}.get(index_name, _plain)

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        index = args[1] if len(args) > 1 else kwargs[index_name]
        weights = args[2] if len(args) > 2 else kwargs[weights_name]
        record(*read(index, weights))

    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


def _after(module: nn.Module, read: Callable[[Any, Any], Picked], record: Record) -> Callable[[], None]:
    """Watch what a router returns."""

    def hook(router: Any, _: Any, output: Any) -> None:
        record(*read(router, output))

    return module.register_forward_hook(hook).remove


def _plain(index: Tensor, weights: Tensor) -> Picked:
    index = index.flatten(0, -2)
    weights = weights.flatten(0, -2)
    # early versions of gpt_oss passed a weight for every expert
    return index, weights if weights.shape == index.shape else weights.gather(1, index.long())


def _switch(mask: Tensor, weights: Tensor) -> Picked:
    if mask.dim() == 2:
        return _plain(mask, weights)
    # one-hot [tokens, 1, experts]; a row of zeros is a token that its expert had no room for
    picked = mask.flatten(0, -2)
    experts = picked.argmax(-1).masked_fill(picked.sum(-1) == 0, -1)
    return experts[:, None], weights.flatten(0, -2)


def _nllb(_: Tensor, weights: Tensor) -> Picked:
    # what counts are the combining weights [tokens, experts]: zero where an expert was full or not picked
    best = weights.flatten(0, -2).topk(2, dim=-1)
    return best.indices.masked_fill(best.values == 0, -1), best.values


def _llama4(router: Any, output: Any) -> Picked:
    # scores are minus infinity before the sigmoid where an expert was not picked, and 0 after it
    best = output[0].flatten(0, -2).topk(router.top_k, dim=-1)
    logits = output[1].flatten(0, -2).topk(router.top_k, dim=-1)
    return logits.indices, best.values


def _jetmoe(router: Any, output: Any) -> Picked:
    best = output[-1].topk(router.top_k, dim=-1)
    return best.indices, best.values.softmax(-1)
