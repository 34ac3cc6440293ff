"""Capacity: an expert takes a bounded number of the picks of a batch; the rest is dropped (GShard, Switch)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moesim.moe.parallel import ALONE, Group


def room_for(picks: int, experts: int, factor: float) -> int:
    """Return how many of `picks` one of `experts` takes: its even share times the capacity factor, at least one."""
    return max(1, math.ceil(factor * picks / experts - 1e-9))


def find_room(experts: Tensor, room: int, count: int, group: Group = ALONE) -> Tensor:
    """Return which picks are kept, bool [sequences, length, K].

    Each expert takes the first `room` picks of the batch, of all processes together, in the order of positions: what
    happens to a token does not depend on later tokens of its sequence, and no sequence goes first. It also means that
    the ends of sequences are dropped first.

    Parameters
    ----------
    experts
        Expert ids [sequences, length, K]; -1 takes no room and is never kept.
    count
        Number of experts.
    """
    sequences, length, picks = experts.shape
    flat = experts.transpose(0, 1).reshape(length, sequences * picks)
    ordered, order = torch.sort(flat, dim=1, stable=True)
    ordered = ordered.contiguous()
    # place of a pick among those of its expert at its position: its distance from the first of them
    place = torch.arange(flat.shape[1], device=flat.device) - torch.searchsorted(ordered, ordered)
    place = torch.empty_like(place).scatter_(1, order, place)
    here = torch.zeros(length, count + 1, dtype=torch.int64, device=flat.device)
    here.scatter_add_(1, torch.where(flat < 0, count, flat), torch.ones_like(flat))
    everywhere = group.gather(here[None])
    at = everywhere.sum(0)
    # and those before: at earlier positions, and at this one in processes with earlier rows
    before = at.cumsum(0) - at + everywhere[: group.rank].sum(0)
    kept = place + before.gather(1, flat.clamp(min=0)) < room
    return (kept & (flat >= 0)).view(length, sequences, picks).transpose(0, 1)
