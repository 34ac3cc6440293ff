"""Routers by name: which experts a token picks, and with which weights.

A router is a class `Router(config, layer)` (see `moesim.moe.routers.base`). Its names are known without torch; the
class is imported when it is first asked for. `docs/routing.md` explains each scheme with the traffic that it makes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesim.base.registry import Registry

if TYPE_CHECKING:
    from moesim.moe.config import MoeConfig
    from moesim.moe.routers.base import Router

_HERE = "moesim.moe.routers"

ROUTERS: Registry[type[Router]] = Registry(
    "router",
    {
        "sigmoid-bias": f"{_HERE}.sigmoid:SigmoidBiasRouter",
        "deepseek-v3": f"{_HERE}.sigmoid:LossFreeRouter",
        "topk-softmax": f"{_HERE}.softmax:TopkSoftmaxRouter",
        "softmax-topk": f"{_HERE}.softmax:SoftmaxTopkRouter",
        "switch": f"{_HERE}.switch:SwitchRouter",
        "noisy-topk": f"{_HERE}.noisy:NoisyTopkRouter",
        "dense": f"{_HERE}.dense:DenseRouter",
        "expert-choice": f"{_HERE}.choice:ExpertChoiceRouter",
        "hierarchical": f"{_HERE}.hierarchical:HierarchicalRouter",
        "hash": f"{_HERE}.hashing:HashRouter",
        "sequence": f"{_HERE}.sequence:SequenceRouter",
    },
    "moesim.routers",
)


def make_router(config: MoeConfig, layer: int) -> Router:
    """Return the router that `config` names, for MoE layer `layer`.

    Raises
    ------
    UnknownName
        There is no such router.
    InputError
        The configuration does not suit it.
    """
    return ROUTERS.get(config.router)(config, layer)


def picks_of(config: MoeConfig) -> int:
    """Return the most experts that a token can get from the router that `config` names."""
    return ROUTERS.get(config.router).picks(config)


def __getattr__(name: str) -> Any:
    if name in {"Context", "Router", "Routing"}:
        from moesim.moe.routers import base

        return getattr(base, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
