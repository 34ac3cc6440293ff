"""Noisy top-k gating with importance and load losses (Shazeer et al. 2017)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from moesim.moe.config import MoeConfig
from moesim.moe.routers import losses
from moesim.moe.routers.base import Context, Gate, Router, Routing


class NoisyTopkRouter(Router):
    """In training each logit gets Gaussian noise of a learnt size; then top-k, then softmax over the picks.

    Noise lets experts near the edge be tried, and makes the expected load differentiable: the *load* loss evens the
    number of tokens that would pick an expert under fresh noise, the *importance* loss the sum of its gate weights.
    """

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.gate, self.noise = Gate(config), Gate(config)

    def decide(self, hidden: Tensor, context: Context) -> Routing:
        """Pick the largest noisy logits."""
        clean = self.gate(hidden)
        if not self.training:
            picked, experts = torch.topk(clean, self.top_k, dim=-1)
            return Routing(experts, self.scale * torch.softmax(picked, dim=-1), {})
        spread = nn.functional.softplus(self.noise(hidden)) + 1e-2
        noisy = clean + spread * draw_noise(clean, context, self.layer)
        # one more than are picked: the runner-up is the threshold of the picks
        best, found = torch.topk(noisy, min(self.top_k + 1, self.experts), dim=-1)
        experts = found[..., : self.top_k]
        weights = torch.softmax(best[..., : self.top_k], dim=-1)
        gates = torch.zeros_like(clean).scatter(-1, experts, weights)
        importance = self.group.mean(gates.flatten(0, 1).mean(0))
        extra = {"importance": losses.variation(importance)}
        if self.top_k < self.experts:
            chance = chance_of_being_picked(clean, spread, noisy, best, self.top_k)
            extra["load"] = losses.variation(self.group.mean(chance.flatten(0, 1).mean(0)))
        return Routing(experts, self.scale * weights, extra)


def chance_of_being_picked(clean: Tensor, spread: Tensor, noisy: Tensor, best: Tensor, top_k: int) -> Tensor:
    """Return the probability that an expert stays among the top k if its noise alone is drawn again [..., experts].

    Parameters
    ----------
    clean, spread, noisy
        Logits without noise, standard deviation of the noise, logits with noise [..., experts].
    best
        The k + 1 largest noisy logits [..., k + 1].
    """
    # the k-th largest of the others: for an expert that is among the top k itself, that is the runner-up
    threshold_in, threshold_out = best[..., top_k, None], best[..., top_k - 1, None]
    threshold = torch.where(noisy > threshold_in, threshold_in, threshold_out)
    result: Tensor = torch.special.ndtr((clean - threshold) / spread)
    return result


def draw_noise(like: Tensor, context: Context, layer: int) -> Tensor:
    """Return standard normal noise [sequences, length, experts].

    With `context.draw` it depends on that, the layer and the number of the sequence alone: not on earlier draws, so
    that a resumed run sees the same, nor on the rank that holds the sequence.
    """
    if context.draw is None:
        return torch.randn_like(like)
    rows = context.rows or range(len(like))
    result = torch.empty_like(like)
    for i, row in enumerate(rows):
        seed = int(np.random.SeedSequence([*context.draw, layer, row]).generate_state(1, np.uint64)[0] >> 1)
        result[i] = torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed)).to(like)
    return result
