"""The state of running sequences: keys, values, and what a sequence-level router has pooled."""

from __future__ import annotations

import torch
from torch import Tensor

from moesim.moe.config import MoeConfig


class Cache:
    """Keys and values of running sequences `[layers, slots, heads, context, width]`; a slot holds one sequence."""

    def __init__(self, config: MoeConfig, slots: int, device: torch.device | str = "cpu") -> None:
        shape = (config.layers, slots, config.heads, config.context, config.hidden // config.heads)
        self.keys = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)
        self.pooled = torch.zeros(config.layers, slots, config.hidden, device=device)


class Past:
    """A view of a `Cache` for one forward pass: sequences in `slots`, each continuing at its `start` position."""

    def __init__(self, cache: Cache, slots: Tensor, start: Tensor, length: int) -> None:
        self.cache, self.slots, self.start = cache, slots, start
        self.positions = start[:, None] + torch.arange(length, device=start.device)
        self.reach = int(self.positions.max()) + 1
        # a token sees every position up to its own, hence nothing that an earlier tenant of the slot left behind
        seen = torch.arange(self.reach, device=start.device)
        self.mask = (seen <= self.positions[..., None])[:, None]

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values `[batch, heads, length, width]` and return all up to `reach`."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        where = (self.slots[:, None], slice(None), self.positions)
        keys[where] = key.transpose(1, 2).to(keys.dtype)
        values[where] = value.transpose(1, 2).to(values.dtype)
        return keys[self.slots, :, : self.reach].to(key.dtype), values[self.slots, :, : self.reach].to(value.dtype)

    def carry(self, layer: int, total: Tensor) -> Tensor:
        """Add what earlier passes summed to running sums `[batch, length, hidden]`; keep the last for later ones."""
        pooled = self.cache.pooled[layer]
        before = torch.where(self.start[:, None] > 0, pooled[self.slots], 0.0)
        total = total + before[:, None].to(total.dtype)
        pooled[self.slots] = total[:, -1].to(pooled.dtype)
        return total
