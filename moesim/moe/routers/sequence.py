"""Sequence-level routing: all tokens of a sequence go to the same experts (Kudugunta et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from moesim.moe.routers.base import Context, Routing
from moesim.moe.routers.softmax import TopkSoftmaxRouter

PREFIX = 16
"""Tokens at the start of a sequence whose mean decides."""


class SequenceRouter(TopkSoftmaxRouter):
    """Top-k softmax on the mean hidden state of the first `PREFIX` tokens of the sequence.

    A mean over the whole sequence, as an encoder takes it, would show a language model its future. Here a token of the
    prefix is routed by the mean up to itself, and every later one by the mean of the prefix: nobody sees ahead, and
    from there on the sequence keeps its experts, so that a serving rank needs few of them for a request.
    """

    def decide(self, hidden: Tensor, context: Context) -> Routing:
        """Pick by the pooled state."""
        return super().decide(self._pool(hidden, context), context)

    def _pool(self, hidden: Tensor, context: Context) -> Tensor:
        past = context.past
        position = torch.arange(hidden.shape[1], device=hidden.device)[None] if past is None else past.positions
        early = (position < PREFIX).unsqueeze(-1)
        total = torch.where(early, hidden, 0.0).cumsum(1)
        if past is not None:
            total = past.carry(self.layer, total)
        return total / (position + 1).clamp(max=PREFIX).unsqueeze(-1)
