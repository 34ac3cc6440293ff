"""What every router shares: its inputs and outputs, capacity, the recorder, and the load that it watches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.capture import RoutingSink
from moesim.moe.config import MoeConfig
from moesim.moe.parallel import ALONE, Group
from moesim.moe.routers.capacity import find_room, room_for

if TYPE_CHECKING:
    from moesim.moe.cache import Past

# Weight of the newest step in the running load.
FRESH = 0.1


@dataclass(frozen=True, eq=False)
class Context:
    """What a router may look at beside the hidden states.

    Parameters
    ----------
    tokens
        Token ids, int64 [sequences, length]; None where there are none.
    past
        Where sequences go on from a cache; None for whole sequences.
    draw
        What seeds noise, such as (seed, step); None for no noise.
    rows
        Numbers of the sequences in the whole batch, so that noise is the same however a batch is split over ranks;
        default 0, 1, 2, ...
    """

    tokens: Tensor | None = None
    past: Past | None = None
    draw: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None


class Routing(NamedTuple):
    """Decision of a router for each token.

    `experts` int64 [sequences, length, K], -1 = none; `weights` float of the same shape, what the outputs of the
    experts are multiplied by, 0 where there is none; `losses` auxiliary losses by name (scalars), before their
    coefficients.
    """

    experts: Tensor
    weights: Tensor
    losses: dict[str, Tensor]


class Router(nn.Module):
    """Base of all routers: a module from hidden states [sequences, length, hidden] to a `Routing`.

    A router implements `decide`. `forward` then drops what finds no room (where there is a capacity factor), tells the
    recorder, and counts what the experts got. Its attributes ``layer`` and ``recorder`` are what `moesim.capture` asks
    for.
    """

    # Whether the experts form groups that limit what a token may pick.
    grouped: ClassVar[bool] = False
    # Capacity factor where the configuration gives none; None drops nothing.
    default_capacity: ClassVar[float | None] = None

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.experts, self.top_k, self.scale = layer, config.experts, config.top_k, config.routed_scale
        self.capacity = self.default_capacity if config.capacity_factor is None else config.capacity_factor
        # in serving all that runs together competes: there a pass holds pieces of sequences
        self.apart = config.compete == "sequence"
        self.recorder: RoutingSink | None = None
        self.group: Group = ALONE
        if self.grouped:
            check_groups(config)
        # share of the picks of each expert in recent training steps; starts at the mean
        self.register_buffer("load", torch.full((config.experts,), 1.0 / config.experts))
        # picks of each expert, and dropped and asked-for ones, since the last `settle`
        self.register_buffer("seen", torch.zeros(config.experts + 2), persistent=False)
        self.load: Tensor
        self.seen: Tensor
        self.dropped = 0.0

    @classmethod
    def picks(cls, config: MoeConfig) -> int:
        """Return the most experts that a token can get."""
        return config.top_k

    def decide(self, hidden: Tensor, context: Context) -> Routing:
        """Return what each token picks, before capacity."""
        raise NotImplementedError

    def forward(self, hidden: Tensor, context: Context | None = None) -> Routing:
        """Route hidden states [sequences, length, hidden]."""
        context = context or Context()
        # the gate is small and its ties matter: float32 whatever the autocast dtype is
        with torch.autocast(hidden.device.type, enabled=False):
            experts, weights, losses = self.decide(hidden if hidden.dtype == torch.float64 else hidden.float(), context)
        if self.capacity is not None:
            experts, weights = self._drop(experts, weights, context)
        if self.recorder is not None:
            self.recorder.record(self.layer, experts.flatten(0, -2), weights.flatten(0, -2))
        if self.training:
            self._count(experts)
        return Routing(experts, weights, losses)

    def settle(self, rate: float, *, low: float, high: float) -> None:
        """End a training step: update the running load, and with it the balancing bias where a router has one.

        Parameters
        ----------
        rate
            Step of the bias.
        low, high
            Band of loads, in multiples of the mean, in which the bias rests.
        """
        seen = self.group.mean(self.seen)
        self.seen.zero_()
        picks = seen[:-2].sum()
        if picks > 0:
            self.load.lerp_(seen[:-2] / picks, FRESH)
            self._balance(seen[:-2] / picks, rate, low, high)
        self.dropped = float(seen[-2] / seen[-1].clamp(min=1.0))

    def _balance(self, share: Tensor, rate: float, low: float, high: float) -> None:
        """Move the bias, given the share of the picks that each expert had in this step [experts]."""

    def _drop(self, experts: Tensor, weights: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        factor = self.capacity or 0.0
        if self.apart and context.past is None:
            room = room_for(experts[0].numel(), self.experts, factor)
            kept = torch.cat([find_room(one[None], room, self.experts) for one in experts])
        else:
            room = room_for(experts.numel() * self.group.size, self.experts, factor)
            kept = find_room(experts, room, self.experts, self.group)
        return torch.where(kept, experts, -1), torch.where(kept, weights, 0.0)

    @torch.no_grad()
    def _count(self, experts: Tensor) -> None:
        flat = experts.flatten()
        self.seen[:-2] += torch.bincount(flat[flat >= 0], minlength=self.experts)
        dropped, asked = self._lost(experts)
        self.seen[-2] += dropped
        self.seen[-1] += asked

    def _lost(self, experts: Tensor) -> tuple[Tensor | int, int]:
        """Return how much was dropped, and of how much: picks, or whole tokens where tokens do not ask."""
        return (experts < 0).sum(), experts.numel()


class Gate(nn.Linear):
    """Linear scores of the experts, without a bias."""

    def __init__(self, config: MoeConfig, outputs: int | None = None) -> None:
        super().__init__(config.hidden, outputs or config.experts, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits [..., experts] in the precision of the hidden states."""
        return nn.functional.linear(hidden, self.weight.to(hidden.dtype))


def check_groups(config: MoeConfig) -> None:
    """Raise InputError unless the experts divide into groups that hold what a token picks."""
    groups, limit = config.groups, config.group_limit
    if groups < 1 or config.experts % groups:
        raise InputError(f"router {config.router}: {groups} groups do not divide {config.experts} experts")
    if not 1 <= limit <= groups:
        raise InputError(f"router {config.router}: group_limit {limit} must lie between 1 and groups {groups}")
    if config.top_k > limit * (config.experts // groups):
        raise InputError(
            f"router {config.router}: {count(limit, 'group')} of {count(config.experts // groups, 'expert')} cannot "
            f"give top_k {config.top_k}; raise group_limit"
        )
