"""Hash routing: a fixed table from token ids to experts (Roller et al. 2021, hash layers)."""

from __future__ import annotations

import torch
from torch import Tensor

from moesim.base.errors import InputError
from moesim.moe.config import MoeConfig
from moesim.moe.routers.base import Context, Router, Routing


class HashRouter(Router):
    """The token id alone decides: `top_k` different experts from a random table, one table a layer, equal weights.

    Nothing is learnt and nothing can collapse, but the load follows the frequencies of the tokens, and no loss can
    even it.
    """

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__(config, layer)
        generator = torch.Generator().manual_seed(layer)
        order = torch.rand(config.vocabulary, config.experts, generator=generator).argsort(dim=1)
        self.register_buffer("table", order[:, : config.top_k].clone(), persistent=False)
        self.table: Tensor

    def decide(self, hidden: Tensor, context: Context) -> Routing:
        """Look the tokens up."""
        if context.tokens is None:
            raise InputError("router hash: needs the token ids in its context")
        experts = self.table[context.tokens]
        return Routing(experts, hidden.new_full(experts.shape, self.scale / self.top_k), {})
