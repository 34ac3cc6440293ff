"""Dense softmax gating: every token uses every expert (Jacobs et al. 1991, adaptive mixtures of local experts)."""

from __future__ import annotations

import torch

from moesim.moe.config import MoeConfig
from moesim.moe.routers import losses
from moesim.moe.routers.base import Context, Gate, Router, Routing


class DenseRouter(Router):
    """Softmax over all experts, all of them used: no sparsity, perfect balance of work, all-to-all of everything.

    `top_k` of the configuration is not read. Experts come in the order of their weights.
    """

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.gate = Gate(config)

    @classmethod
    def picks(cls, config: MoeConfig) -> int:
        """All."""
        return config.experts

    def decide(self, hidden: torch.Tensor, context: Context) -> Routing:
        """Weigh every expert."""
        logits = self.gate(hidden)
        weights, experts = torch.sort(torch.softmax(logits, dim=-1), dim=-1, descending=True, stable=True)
        return Routing(experts, self.scale * weights, {"z": losses.z_loss(logits)} if self.training else {})
