"""Is the routing well? Balance and collapse of each layer, from the running loads of its router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from moesim.moe.routers.base import Router

DEAD = 0.05
"""An expert below this share of the mean load is called dead."""


COLLAPSED = 0.25
"""A layer with this share of dead experts is called collapsed."""


def collapse(metrics: Mapping[str, Any], warmup: int) -> str:
    """Return a warning if a layer has collapsed once twice the warm-up is over, else an empty string."""
    dead: list[float] = metrics["dead"]
    if metrics["step"] < 2 * warmup or max(dead, default=0.0) < COLLAPSED:
        return ""
    layer = dead.index(max(dead))
    return (
        f"step {metrics['step']}: layer {layer} collapses: {dead[layer]:.0%} of its experts have below {DEAD:.0%} of "
        "the mean load; raise balance_loss or balance_rate, or lower the learning rate"
    )


def health(routers: Sequence[Router]) -> dict[str, list[float]]:
    """Return figures per layer.

    `max_over_mean` and `min_over_mean` load; `entropy` of the load, 1 when even and 0 when one expert has all; `dead`
    share of the experts whose load is below `DEAD` of the mean: a collapsed layer shows here first; `dropped` share of
    the picks (where experts choose: of the tokens) that no expert took in the last step. Loads are running means over
    about ten steps.
    """
    loads = [router.load * router.experts for router in routers]
    shares = [router.load.double().clamp(min=1e-12) for router in routers]
    return {
        "max_over_mean": [round(load.max().item(), 3) for load in loads],
        "min_over_mean": [round(load.min().item(), 3) for load in loads],
        "entropy": [
            round(float(-(share * share.log()).sum() / torch.tensor(len(share)).double().log()), 4) for share in shares
        ],
        "dead": [round((load < DEAD).double().mean().item(), 4) for load in loads],
        "dropped": [round(router.dropped, 4) for router in routers],
    }
