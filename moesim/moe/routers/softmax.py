"""Softmax gates: top-k before or after the softmax."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from moesim.moe.config import MoeConfig
from moesim.moe.gating import pick
from moesim.moe.kernels import usable
from moesim.moe.routers import losses
from moesim.moe.routers.base import Context, Gate, Router, Routing


class SoftmaxTopkRouter(Router):
    """Softmax over all experts, then top-k: the weights keep their probability and sum to less than 1.

    DeepSeek-V2, OLMoE and Qwen1.5-MoE do so. How sure the router is reaches the output: an unsure token takes little
    from its experts.
    """

    # Whether the weights of the picks sum to 1.
    normalised: ClassVar[bool] = False

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.gate = Gate(config)

    def decide(self, hidden: Tensor, context: Context) -> Routing:
        """Pick the largest probabilities."""
        logits = self.gate(hidden)
        if not self.training and usable(logits):
            shape = logits.shape[:-1]
            chosen, weights = pick(logits.flatten(0, -2), self.picks_here, normalise=self.normalised, scale=self.scale)
            return Routing(chosen.view(*shape, -1), weights.view(*shape, -1), {})
        probabilities = torch.softmax(logits, dim=-1)
        picked, experts = torch.topk(probabilities, self.picks_here, dim=-1)
        return Routing(experts, self.scale * self.weigh(picked), self._losses(logits, probabilities, experts))

    @property
    def picks_here(self) -> int:
        """How many experts a token picks."""
        return self.top_k

    def weigh(self, picked: Tensor) -> Tensor:
        """Return gate weights from the probabilities of the picks [..., K]."""
        return picked

    def _losses(self, logits: Tensor, probabilities: Tensor, experts: Tensor) -> dict[str, Tensor]:
        if not self.training:
            return {}
        return {"balance": losses.balance(probabilities, experts, self.group), "z": losses.z_loss(logits)}


class TopkSoftmaxRouter(SoftmaxTopkRouter):
    """Top-k of the logits, then softmax over those: the weights sum to 1 (Mixtral, gpt-oss, Qwen3).

    The same as renormalising the probabilities of the picks after a softmax over all experts.
    """

    normalised = True

    def weigh(self, picked: Tensor) -> Tensor:
        """Renormalise."""
        return picked / picked.sum(-1, keepdim=True)
