"""Auxiliary losses of routers, each a scalar before its coefficient.

Over several ranks each is that of the whole batch: statistics pass through `Group.mean`, and the mean over ranks of the
gradients is the gradient of the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moesim.moe.parallel import Group


def balance(probabilities: Tensor, experts: Tensor, group: Group) -> Tensor:
    """Return E times the sum over experts of (share of the picks) x (mean probability): 1 when both are even.

    Fedus et al. 2021 (Switch), equation 4, over the whole batch.

    Parameters
    ----------
    probabilities
        Of every expert, summing to 1 [sequences, length, experts].
    experts
        Picks [sequences, length, K]; -1 counts nowhere.
    """
    share = group.mean(shares(experts.flatten(0, 1)[None], probabilities)[0])
    return probabilities.shape[-1] * (share * probabilities.flatten(0, 1).mean(0)).sum()


def sequence_balance(probabilities: Tensor, experts: Tensor) -> Tensor:
    """Return the same within each sequence, mean over sequences (DeepSeek-V3 report, equations 17 to 20)."""
    return probabilities.shape[-1] * (shares(experts, probabilities) * probabilities.mean(1)).sum(-1).mean()


def shares(experts: Tensor, like: Tensor) -> Tensor:
    """Return the share of the picks of each expert in each sequence [sequences, experts], in the dtype of `like`."""
    chosen = experts.flatten(1)
    kept = (chosen >= 0).to(like.dtype)
    counts = like.new_zeros(len(chosen), like.shape[-1]).scatter_add_(1, chosen.clamp(min=0), kept)
    return counts / counts.sum(-1, keepdim=True).clamp(min=1.0)


def z_loss(logits: Tensor) -> Tensor:
    """Return the mean square of the log-sum-exp of the logits: it keeps them small (Zoph et al. 2022, ST-MoE)."""
    return torch.logsumexp(logits, dim=-1).square().mean()


def variation(amounts: Tensor) -> Tensor:
    """Return the squared coefficient of variation of what the experts got [experts] (Shazeer et al. 2017)."""
    return amounts.var(unbiased=False) / (amounts.mean().square() + 1e-10)
