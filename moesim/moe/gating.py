"""From router logits to a choice: gate function, group limit, top-k and weights; Triton on a GPU, PyTorch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.moe.kernels import usable


def pick(
    logits: Tensor, top_k: int, *, sigmoid: bool = False, bias: Tensor | None = None, normalise: bool = True,
    groups: int = 1, limit: int = 1, scale: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Choose experts for each token.

    Parameters
    ----------
    logits
        `[tokens, E]`.
    top_k
        Experts that a token picks.
    sigmoid
        Gates are sigmoids of the logits (DeepSeek-V3) rather than their softmax (Mixtral, Qwen).
    bias
        Added to the gates for the choice alone, float32 `[E]` (loss-free balancing).
    normalise
        Divide the picked gates by their sum; with a softmax this is the softmax over the picked logits.
    groups, limit
        Neighbouring experts form `groups` groups of one size, and a token picks inside of those `limit` groups whose
        two highest scores add up highest (DeepSeek-V3, node-limited routing).
    scale
        Factor on the weights.

    Returns
    -------
    Experts int64 `[tokens, top_k]`, best first, the smaller index among equals, and weights float32, which carry the
    gradient.

    Raises
    ------
    InputError
        If the groups do not divide the experts, or do not hold `top_k` experts.
    """
    experts = logits.shape[-1]
    if groups < 1 or experts % groups or not 1 <= limit <= groups or top_k > limit * (experts // groups):
        raise InputError(
            f"router: {limit} of {count(groups, 'group')} of {experts} experts cannot give {count(top_k, 'pick')}; "
            "groups must divide the experts and hold the picks"
        )
    options = {
        "sigmoid": sigmoid, "bias": bias, "normalise": normalise, "groups": groups, "limit": limit, "scale": scale
    }  # fmt: skip
    if usable(logits):
        from moesim.moe.kernels import topk

        return topk.pick(logits, top_k, **options)  # type: ignore[arg-type]
    return pick_torch(logits, top_k, **options)  # type: ignore[arg-type]


def pick_torch(
    logits: Tensor, top_k: int, *, sigmoid: bool = False, bias: Tensor | None = None, normalise: bool = True,
    groups: int = 1, limit: int = 1, scale: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Choose experts as `pick` does, by PyTorch on any device and in any dtype."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    gates = torch.sigmoid(wide) if sigmoid else torch.softmax(wide, dim=-1)
    score = gates.detach() if bias is None else gates.detach() + bias
    if limit < groups:
        inside = score.view(*score.shape[:-1], groups, -1)
        worth = inside.topk(min(2, inside.shape[-1]), dim=-1).values.sum(-1)
        # a stable sort: the smaller index wins a tie, on every device
        best = worth.sort(dim=-1, descending=True, stable=True).indices[..., :limit]
        closed = torch.ones_like(worth, dtype=torch.bool).scatter(-1, best, False)
        score = inside.masked_fill(closed[..., None], -torch.inf).flatten(-2)
    chosen = score.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    weights = gates.gather(-1, chosen)
    if normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-9)
    return chosen, scale * weights
