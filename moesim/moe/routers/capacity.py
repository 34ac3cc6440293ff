"""Capacity: an expert takes a bounded number of the picks of a group; the rest is dropped (GShard, Switch)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def room_for(picks: int, experts: int, factor: float) -> int:
    """Return how many of `picks` one of `experts` takes: its even share times the capacity factor, at least one."""
    return max(1, math.ceil(factor * picks / experts - 1e-9))


def find_room(experts: Tensor, room: int) -> Tensor:
    """Return which picks are kept, bool [groups, tokens, K].

    Each expert takes the first `room` picks of each group, in the order of tokens. That order makes what happens to a
    token independent of later ones; it also means that the end of a long group is dropped first.

    Parameters
    ----------
    experts
        Expert ids [groups, tokens, K]; -1 takes no room and is never kept.
    """
    flat = experts.flatten(1)
    ordered, order = torch.sort(flat, dim=1, stable=True)
    # place of a pick among those of its expert: its distance from the first of them
    place = torch.arange(flat.shape[1], device=flat.device) - torch.searchsorted(ordered, ordered)
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, place < room)
    return (kept & (flat >= 0)).view_as(experts)
