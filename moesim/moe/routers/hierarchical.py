"""Hierarchical mixture of experts: a gate over groups, then a gate within each chosen group."""

from __future__ import annotations

import torch
from torch import Tensor

from moesim.base.errors import InputError
from moesim.moe.config import MoeConfig
from moesim.moe.routers import losses
from moesim.moe.routers.base import Context, Gate, Router, Routing


class HierarchicalRouter(Router):
    """Two levels (Jordan & Jacobs 1994; Shazeer et al. 2017, appendix B): groups, then experts in them.

    A token picks `group_limit` groups and `top_k / group_limit` experts in each.

    The weight of an expert is the weight of its group times its weight in the group, each a softmax over what was
    picked. A token visits exactly `group_limit` groups: with a group on a node or a rank, that is what it sends.
    """

    grouped = True

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.groups, self.limit = config.groups, config.group_limit
        self.each, rest = divmod(config.top_k, self.limit)
        if rest or self.each > config.experts // self.groups:
            raise InputError(
                f"router {config.router}: top_k {config.top_k} must be group_limit {self.limit} times at most the "
                f"{config.experts // self.groups} experts of a group"
            )
        self.gate, self.group_gate = Gate(config), Gate(config, config.groups)

    def decide(self, hidden: Tensor, context: Context) -> Routing:
        """Pick groups, then experts within each."""
        outer = self.group_gate(hidden)
        inner = self.gate(hidden).view(*hidden.shape[:-1], self.groups, -1)
        group_logits, groups = outer.topk(self.limit, dim=-1)
        size = inner.shape[-1]
        within = inner.gather(-2, groups.unsqueeze(-1).expand(*groups.shape, size))
        logits, local = within.topk(self.each, dim=-1)
        weights = torch.softmax(group_logits, dim=-1).unsqueeze(-1) * torch.softmax(logits, dim=-1)
        experts = groups.unsqueeze(-1) * size + local
        weights, order = weights.flatten(-2).sort(dim=-1, descending=True, stable=True)
        experts = experts.flatten(-2).gather(-1, order)
        return Routing(experts, self.scale * weights, self._losses(outer, inner, experts))

    def _losses(self, outer: Tensor, inner: Tensor, experts: Tensor) -> dict[str, Tensor]:
        if not self.training:
            return {}
        joint = (torch.softmax(outer, dim=-1).unsqueeze(-1) * torch.softmax(inner, dim=-1)).flatten(-2)
        z = losses.z_loss(outer) + losses.z_loss(inner)
        return {"balance": losses.balance(joint, experts, self.group), "z": z}
