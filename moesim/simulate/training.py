"""Training steps: the backward pass after the forward one, and tokens that an expert's capacity drops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.costs.constants import Constant

_PROFILE: Final = "DeepSeek-V3 training profile, H800 (deepseek-ai/profile-data train.json), times of a layer"
EXPERTS_BACKWARD: Final = Constant(
    2.98, "measured", f"grouped GEMMs backward over forward: 2834 + 5800 us over 2898, {_PROFILE}"
)
ATTENTION_BACKWARD: Final = Constant(
    2.90, "measured", f"attention backward over forward: 2272 + 2388 + 3779 us over 1673 + 1237, {_PROFILE}"
)
SOURCES: Final = {
    "training: experts, backward over forward": str(EXPERTS_BACKWARD),
    "training: attention, backward over forward": str(ATTENTION_BACKWARD),
}

Drop = Literal["probs", "position"]


@dataclass(frozen=True)
class Training:
    """How a training step differs from inference: a backward pass, and what experts take.

    The gradient of combine travels from home to expert as dispatch does, in the dtype of combine; the gradient of
    dispatch travels home as combine does. Optimizer and gradients of the dense weights are left out.

    Parameters
    ----------
    capacity_factor
        An expert takes at most ceil(tokens x top_k / experts x factor) tokens of each home rank and layer (as
        Megatron-Core and GShard count); None: it takes all.
    drop
        Who is dropped beyond: ``"position"`` the last ones, ``"probs"`` those with the smallest weights.

    Raises
    ------
    InputError
        If the factor is not more than zero or the rule has another name.
    """

    capacity_factor: float | None = None
    drop: Drop = "position"

    def __post_init__(self) -> None:
        factor = self.capacity_factor
        if factor is not None and not (math.isfinite(factor) and factor > 0):
            raise InputError(f"Training.capacity_factor: expected more than zero, got {factor}")
        if self.drop not in ("probs", "position"):
            raise InputError(f"Training.drop: expected 'probs' or 'position', got {self.drop!r}")


def drop_beyond(
    routes: Array, home: Array, experts: int, ranks: int, factor: float, weights: Array | None = None
) -> tuple[Array, int]:
    """Return routes [n, L, K] without the picks beyond capacity (-1 there), and how many those are.

    Parameters
    ----------
    routes
        Expert ids, -1 for none.
    home
        Home rank of each token [n].
    factor
        Capacity factor: every rank may send an expert ceil(its tokens x K / experts x factor) tokens.
    weights
        Gate weights [n, L, K]: the smallest are dropped. None: the last tokens are.
    """
    n, L, K = routes.shape
    kept = np.array(routes)
    # no expert gets more than all tokens, whatever the factor
    capacity = np.minimum(np.ceil(np.bincount(home, minlength=ranks) * K / experts * factor), n).astype(np.int64)
    token_home = np.repeat(home.astype(np.int64), K)
    dropped = 0
    for layer in range(L):
        picks = kept[:, layer].ravel().astype(np.int64)
        bucket = token_home * (experts + 1) + np.where(picks < 0, experts, picks)
        if weights is None:
            order = np.argsort(bucket, kind="stable")
        else:
            order = np.lexsort((-weights[:, layer].ravel().astype(np.float64), bucket))
        ordered = bucket[order]
        first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        place = np.arange(n * K) - np.repeat(first, np.diff(np.r_[first, n * K]))
        over = order[(place >= capacity[token_home[order]]) & (picks[order] >= 0)]
        picks[over] = -1
        dropped += len(over)
        kept[:, layer] = picks.reshape(n, K)
    return kept, dropped
