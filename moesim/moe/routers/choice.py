"""Expert choice: experts pick tokens (Zhou et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from moesim.moe.config import MoeConfig
from moesim.moe.routers import losses
from moesim.moe.routers.base import Context, Gate, Router, Routing, competing
from moesim.moe.routers.capacity import room_for


class ExpertChoiceRouter(Router):
    """Each expert takes the tokens that suit it best, an even share of `top_k` picks a token: always balanced.

    A token gets as many experts as chose it: many, or none (-1). Which ones depends on the other tokens of its group,
    later ones too: in a causal language model the choice leaks the future, so a loss that is measured on whole
    sequences is flattered, and decoding (a group is then a batch of single tokens) routes differently from training.
    `capacity_factor` multiplies the share; it is 1 where it is not given. An expert takes at least one token of a
    group.
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
        by_group = competing(scores.detach(), context)
        tokens = by_group.shape[1]
        room = min(tokens, room_for(tokens * self.top_k, self.experts, self.share))
        taken = by_group.transpose(1, 2).topk(room, dim=-1).indices.transpose(1, 2)
        chosen = torch.zeros_like(by_group, dtype=torch.bool).scatter_(1, taken, True).view_as(scores)
        # most tokens have few experts: as wide as the busiest token needs, or as the recorder expects
        busiest = int(chosen.sum(-1).max()) if self.recorder is None else self.experts
        best, experts = torch.where(chosen, scores.detach(), -1.0).topk(max(1, busiest), dim=-1)
        none = best < 0
        weights = torch.where(none, 0.0, scores.gather(-1, experts))
        extra = {"z": losses.z_loss(logits)} if self.training else {}
        return Routing(torch.where(none, -1, experts), self.scale * weights, extra)

    def _lost(self, experts: Tensor) -> tuple[Tensor | int, int]:
        return (experts < 0).all(-1).sum(), experts[..., 0].numel()
