"""Expert choice: experts pick tokens (Zhou et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from moesim.moe.config import MoeConfig
from moesim.moe.routers import losses
from moesim.moe.routers.base import Context, Gate, Router, Routing
from moesim.moe.routers.capacity import room_for


class ExpertChoiceRouter(Router):
    """Each expert takes the tokens that suit it best, an even share of `top_k` picks a token: always balanced.

    A token gets as many experts as chose it: many, or none (-1). Which ones depends on the other tokens of the batch,
    later ones of its sequence too: in a causal language model the choice leaks the future, so a loss that is measured
    on whole sequences is flattered, and decoding (the batch is then of single tokens) routes differently from training.
    `capacity_factor` multiplies the share; it is 1 where it is not given. An expert takes at least one token.
    """

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.gate = Gate(config)
        # the share that an expert takes; nothing that was chosen is dropped afterwards
        self.share, self.capacity = config.capacity_factor or 1.0, None

    @classmethod
    def picks(cls, config: MoeConfig) -> int:
        """All, if every expert happens to choose the token."""
        return config.experts

    def decide(self, hidden: Tensor, context: Context) -> Routing:
        """Let each expert pick its most probable tokens."""
        logits = self.gate(hidden)
        scores = torch.softmax(logits, dim=-1)
        if self.apart and context.past is None:
            chosen = torch.stack([self._choose(one) for one in scores.detach()])
        else:
            # over the batch of all processes: each chooses for all, and keeps its own rows
            everybody = self.group.gather(scores.detach())
            chosen = self._choose(everybody.flatten(0, 1)).view(everybody.shape)[self.group.share(len(everybody))]
        # most tokens have few experts: as wide as the busiest token needs, or as the recorder expects
        busiest = int(chosen.sum(-1).max()) if self.recorder is None else self.experts
        best, experts = torch.where(chosen, scores.detach(), -1.0).topk(max(1, busiest), dim=-1)
        none = best < 0
        weights = torch.where(none, 0.0, scores.gather(-1, experts))
        extra = {"z": losses.z_loss(logits)} if self.training else {}
        return Routing(torch.where(none, -1, experts), self.scale * weights, extra)

    def _choose(self, scores: Tensor) -> Tensor:
        """Return which tokens each expert takes, bool [tokens, experts]."""
        room = min(len(scores), room_for(len(scores) * self.top_k, self.experts, self.share))
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(0, scores.topk(room, dim=0).indices, True)

    def _lost(self, experts: Tensor) -> tuple[Tensor | int, int]:
        return (experts < 0).all(-1).sum(), experts[..., 0].numel()
