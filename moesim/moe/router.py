"""Routers: which experts a token picks, and with which weights.

A router is a module that maps hidden states `[sequences, length, hidden]` to a `Routing`. Routers are found by name in
`ROUTERS`, and each tells the recorder that is attached to it, if any, what it decided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moesim.base.errors import UnknownName
from moesim.capture import RoutingSink
from moesim.moe.config import MoeConfig


class Routing(NamedTuple):
    """Decision of a router for each token.

    `experts` int64 [sequences, length, K], highest score first; `weights` float of the same shape, what the outputs of
    the experts are multiplied by; `balance` scalar, the auxiliary loss before its coefficient.
    """

    experts: Tensor
    weights: Tensor
    balance: Tensor


class SigmoidBiasRouter(nn.Module):
    """Sigmoid gates, top-k by gate plus a balancing bias, weights from the gates alone (DeepSeek-V3, section 2.1.2).

    The bias is no parameter: after a training step `nudge` moves it against the load. Other than in DeepSeek-V3 it
    moves only for experts whose running load left a band around the mean: inside the band experts may specialise,
    outside of it none may starve or swamp. A bias that always acts would balance the training mix almost perfectly, and
    production models are not balanced on any given traffic.

    The auxiliary loss is DeepSeek-V3's sequence-wise one: it keeps a sequence from using few experts only, hence
    whole domains from living on experts of their own.
    """

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.top_k, self.scale = layer, config.top_k, config.routed_scale
        self.gate = nn.Linear(config.hidden, config.experts, bias=False)
        self.register_buffer("bias", torch.zeros(config.experts))
        # share of the picks of each expert in recent training steps; starts at the mean
        self.register_buffer("load", torch.full((config.experts,), 1.0 / config.experts))
        self.bias: Tensor
        self.load: Tensor
        self.recorder: RoutingSink | None = None

    def forward(self, hidden: Tensor) -> Routing:
        """Route hidden states [sequences, length, hidden]."""
        # the gate is small and its ties matter: float32 whatever the autocast dtype is
        with torch.autocast(hidden.device.type, enabled=False):
            gates = torch.sigmoid(nn.functional.linear(hidden.float(), self.gate.weight.float()))
        experts = torch.topk(gates.detach() + self.bias, self.top_k, dim=-1).indices
        picked = gates.gather(-1, experts)
        weights = self.scale * picked / (picked.sum(-1, keepdim=True) + 1e-9)
        if self.recorder is not None:
            self.recorder.record(self.layer, experts.flatten(0, -2), weights.flatten(0, -2))
        balance = hidden.new_zeros(())
        if self.training:
            chosen = experts.flatten(1)
            counts = gates.new_zeros(len(chosen), gates.shape[-1]).scatter_add_(
                1, chosen, torch.ones_like(chosen, dtype=gates.dtype)
            )
            share = counts / chosen.shape[1]
            self.load.lerp_(share.mean(0), 0.1)
            mean_gate = (gates / gates.sum(-1, keepdim=True)).mean(1)
            balance = gates.shape[-1] * (share * mean_gate).sum(-1).mean()
        return Routing(experts, weights, balance)

    @torch.no_grad()
    def nudge(self, rate: float, *, low: float, high: float) -> None:
        """Move the bias of experts whose running load, in multiples of the mean, is below `low` or above `high`."""
        relative = self.load * self.load.numel()
        self.bias += rate * ((relative < low).to(self.bias.dtype) - (relative > high).to(self.bias.dtype))


ROUTERS: dict[str, Callable[[MoeConfig, int], SigmoidBiasRouter]] = {"sigmoid-bias": SigmoidBiasRouter}


def make_router(config: MoeConfig, layer: int) -> SigmoidBiasRouter:
    """Return the router that `config` names, for MoE layer `layer`.

    Raises
    ------
    UnknownName
        There is no such router.
    """
    if config.router not in ROUTERS:
        raise UnknownName("router", config.router, ROUTERS)
    return ROUTERS[config.router](config, layer)
