"""The capture hook: a recorder attached to the routers of a model for the time of a `with` block.

A router takes part by having two attributes: ``layer``, its MoE layer number, and ``recorder``, None or a
`RoutingSink` that it calls once a forward pass. With no recorder attached that costs one comparison with None.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn


class RoutingSink(Protocol):
    """What a router talks to."""

    def record(self, layer: int, experts: Tensor, weights: Tensor) -> None:
        """Take note of the experts and gate weights [tokens, top_k] of one MoE layer in one forward pass."""


class Recorder:
    """Collects the routing of forward passes until it is taken.

    Parameters
    ----------
    layers
        Number of MoE layers; each must report exactly once a forward pass.
    keep_weights
        Whether gate weights are kept beside expert ids.
    """

    def __init__(self, layers: int, keep_weights: bool = True) -> None:
        self.layers, self.keep_weights = layers, keep_weights
        self._experts: list[list[Tensor]] = [[] for _ in range(layers)]
        self._weights: list[list[Tensor]] = [[] for _ in range(layers)]

    def record(self, layer: int, experts: Tensor, weights: Tensor) -> None:
        """Keep one layer's decisions; copies to the host wait until `take`, so that a GPU is not stalled here."""
        self._experts[layer].append(experts.detach())
        if self.keep_weights:
            self._weights[layer].append(weights.detach())

    def take(self) -> tuple[NDArray[np.int16], NDArray[np.float16] | None]:
        """Return and forget all that was recorded since the last call.

        Returns
        -------
        Expert ids int16 [tokens, layers, top_k], and gate weights float16 of the same shape (None if not kept),
        tokens in the order in which the forward passes saw them.

        Raises
        ------
        InputError
            If the layers did not all see the same tokens, or nothing was recorded.
        """
        seen = [sum(len(part) for part in parts) for parts in self._experts]
        if not any(seen) or len(set(seen)) != 1:
            raise InputError(f"capture: the MoE layers recorded {seen} tokens; each must record every token once")
        experts = _stack(self._experts).astype(np.int16)
        weights = _stack(self._weights).astype(np.float16) if self.keep_weights else None
        for parts in (*self._experts, *self._weights):
            parts.clear()
        return experts, weights


@contextmanager
def capture(model: nn.Module, keep_weights: bool = True) -> Iterator[Recorder]:
    """Record the routing of every forward pass of `model` inside the block.

    Parameters
    ----------
    model
        Any torch module whose routers follow the protocol of this file.
    keep_weights
        Whether gate weights are kept beside expert ids.

    Raises
    ------
    InputError
        If the model has no such routers, their layers are not 0..L-1, or one is being recorded already.
    """
    routers: list[Any] = [m for m in model.modules() if hasattr(m, "recorder") and hasattr(m, "layer")]
    if not routers:
        raise InputError(f"{type(model).__name__} has no routers to capture: modules with `layer` and `recorder`")
    if sorted(router.layer for router in routers) != list(range(len(routers))):
        raise InputError(f"{type(model).__name__}: layers of its {len(routers)} routers must be 0..{len(routers) - 1}")
    if any(router.recorder is not None for router in routers):
        raise InputError(f"{type(model).__name__} is being captured already: leave the other `capture` block first")
    recorder = Recorder(len(routers), keep_weights)
    for router in routers:
        router.recorder = recorder
    try:
        yield recorder
    finally:
        for router in routers:
            router.recorder = None


def _stack(layers: list[list[Tensor]]) -> NDArray[Any]:
    import torch

    # one copy to the host for all layers; bfloat16 has no numpy dtype, so weights pass through float32
    stacked = torch.stack([torch.cat(parts) for parts in layers], dim=1)
    return np.asarray((stacked.float() if stacked.is_floating_point() else stacked).cpu().numpy())
