"""Sigmoid gates with a balancing bias: DeepSeek-V3, and the variant of the bundled model."""

from __future__ import annotations

import torch
from torch import Tensor

from moesim.moe.config import MoeConfig
from moesim.moe.gating import pick
from moesim.moe.kernels import usable
from moesim.moe.routers import losses
from moesim.moe.routers.base import Context, Gate, Router, Routing


class SigmoidBiasRouter(Router):
    """Sigmoid gates, top-k by gate plus a balancing bias, weights from the gates alone (DeepSeek-V3, section 2.1.2).

    The bias is no parameter: after a training step `settle` moves it against the load. Other than in DeepSeek-V3 it
    moves only for experts whose running load left a band around the mean: inside the band experts may specialise,
    outside of it none may starve or swamp. A bias that always acts would balance the training mix almost perfectly, and
    production models are not balanced on any given traffic.

    The auxiliary loss is DeepSeek-V3's sequence-wise one: it keeps a sequence from using few experts only, hence
    whole domains from living on experts of their own.
    """

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.gate = Gate(config)
        self.register_buffer("bias", torch.zeros(config.experts))
        self.bias: Tensor

    def allowed(self, scores: Tensor) -> Tensor:
        """Return scores [..., experts] with those a token may not pick at minus infinity."""
        return scores

    def decide(self, hidden: Tensor, context: Context) -> Routing:
        """Pick the largest gates plus bias."""
        logits = self.gate(hidden)
        if not self.training and usable(logits):
            return Routing(*self._fused(logits), {})
        gates = torch.sigmoid(logits)
        experts = torch.topk(self.allowed(gates.detach() + self.bias), self.top_k, dim=-1).indices
        picked = gates.gather(-1, experts)
        weights = self.scale * picked / (picked.sum(-1, keepdim=True) + 1e-9)
        if not self.training:
            return Routing(experts, weights, {})
        probabilities = gates / gates.sum(-1, keepdim=True)
        return Routing(experts, weights, {"balance": losses.sequence_balance(probabilities, experts)})

    def _fused(self, logits: Tensor, groups: int = 1, limit: int = 1) -> tuple[Tensor, Tensor]:
        """Return the same choice, made by one kernel on the device."""
        flat, shape = logits.flatten(0, -2), logits.shape[:-1]
        experts, weights = pick(
            flat, self.top_k, sigmoid=True, bias=self.bias, groups=groups, limit=limit, scale=self.scale
        )
        return experts.view(*shape, -1), weights.view(*shape, -1)

    @torch.no_grad()
    def _balance(self, share: Tensor, rate: float, low: float, high: float) -> None:
        relative = self.load * self.experts
        self.bias += rate * ((relative < low).to(self.bias.dtype) - (relative > high).to(self.bias.dtype))


class LossFreeRouter(SigmoidBiasRouter):
    """DeepSeek-V3: experts in groups, a token picks from its best groups, and a bias that always acts.

    A group scores the sum of its two best biased gates; the `group_limit` best groups of a token compete. With groups
    on nodes this bounds how many nodes a token visits. After each step the bias of every expert moves by the same small
    amount against the sign of its load's error (Wang et al. 2024, auxiliary-loss-free load balancing).
    """

    grouped = True

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.groups, self.limit = config.groups, config.group_limit

    def _fused(self, logits: Tensor, groups: int = 1, limit: int = 1) -> tuple[Tensor, Tensor]:
        return super()._fused(logits, self.groups, self.limit)

    def allowed(self, scores: Tensor) -> Tensor:
        """Keep the experts of the best groups."""
        size = self.experts // self.groups
        grouped = scores.view(*scores.shape[:-1], self.groups, size)
        best = grouped.topk(min(2, size), dim=-1).values.sum(-1).topk(self.limit, dim=-1).indices
        closed = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter_(-1, best, False)
        result: Tensor = grouped.masked_fill(closed.unsqueeze(-1), -torch.inf).flatten(-2)
        return result

    @torch.no_grad()
    def _balance(self, share: Tensor, rate: float, low: float, high: float) -> None:
        self.bias += rate * torch.sign(1 / self.experts - share)
