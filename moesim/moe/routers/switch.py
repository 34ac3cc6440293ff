"""Switch: one expert a token, bounded room, and tokens that are dropped."""

from __future__ import annotations

from moesim.moe.config import MoeConfig
from moesim.moe.routers.softmax import SoftmaxTopkRouter


class SwitchRouter(SoftmaxTopkRouter):
    """Each token picks its most probable expert; an expert takes its even share times the capacity factor (Fedus 2021).

    A token that finds no room has no routed expert (-1): the residual stream, and a shared expert if there is one,
    pass it on. `top_k` of the configuration is not read; `capacity_factor` is 1.25 where it is not given.
    """

    default_capacity = 1.25

    @classmethod
    def picks(cls, config: MoeConfig) -> int:
        """One."""
        return 1

    @property
    def picks_here(self) -> int:
        """One."""
        return 1
