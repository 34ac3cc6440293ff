"""Grouping: which row each pick gets when rows are sorted by expert, and which expert a block of rows has."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from moesim.moe.kernels.jit import group as jit

SMALLEST: Final = 16
"""Rows of the smallest block; the tensor cores' smallest tile."""
HEIGHTS: Final = 4
"""Block heights: 16, 32, 64, 128."""
_PICKS: Final = 128


class Grouping(NamedTuple):
    """Rows sorted by expert, picks of one expert in their order; all on the device, nothing waits for it.

    Attributes
    ----------
    order
        Pick (token * K + k) of each row, int32 [P]; rows past the last used one are undefined.
    place
        Row of each pick, int32 [P]; -1 for a pick of nobody.
    offsets
        First row of each expert and the end, int32 [E + 1].
    expert_of, row_of, totals
        Of every block height 16, 32, 64, 128: expert and first row of each block int32 [4, bound], blocks int32 [4].
    top_k
        Picks of a token, K.
    """

    order: Tensor
    place: Tensor
    offsets: Tensor
    expert_of: Tensor
    row_of: Tensor
    totals: Tensor
    top_k: int

    @property
    def rows(self) -> int:
        """Rows there is room for: all picks."""
        return len(self.order)

    @property
    def experts(self) -> int:
        """Number of experts, E."""
        return len(self.offsets) - 1

    def most_blocks(self, height: int) -> int:
        """Blocks of `height` rows that these picks can at most need, however they fall on the experts."""
        return self.rows // height + min(self.experts, self.rows)


def group(chosen: Tensor, experts: int) -> Grouping:
    """Sort picks by expert.

    Parameters
    ----------
    chosen
        Expert of each pick, int [tokens, K]; -1 is a pick of nobody.
    experts
        Number of experts.
    """
    picks, device = chosen.numel(), chosen.device
    chunks = max(1, -(-picks // _PICKS))
    flat = chosen.contiguous().view(-1)
    padded = next_power(experts)
    counts = torch.empty((experts, chunks), dtype=torch.int32, device=device)
    jit.histogram[(chunks,)](flat, counts, picks, chunks, PICKS=_PICKS, EXPERTS=padded, E=experts)
    ends = torch.cumsum(counts.view(-1), 0, dtype=torch.int32)
    order = torch.empty(picks, dtype=torch.int32, device=device)
    place = torch.empty(picks, dtype=torch.int32, device=device)
    jit.scatter[(chunks,)](flat, counts, ends, order, place, picks, chunks, E=experts, PICKS=_PICKS)
    bound = picks // SMALLEST + min(experts, picks)
    expert_of = torch.empty((HEIGHTS, max(bound, 1)), dtype=torch.int32, device=device)
    row_of = torch.empty_like(expert_of)
    offsets = torch.empty(experts + 1, dtype=torch.int32, device=device)
    totals = torch.empty(HEIGHTS, dtype=torch.int32, device=device)
    jit.block_map[(experts,)](
        ends, offsets, expert_of, row_of, totals, chunks, expert_of.shape[1],
        E=experts, EXPERTS=padded, SMALLEST=SMALLEST, HEIGHTS=HEIGHTS, BLOCKS=32,
    )  # fmt: skip
    return Grouping(order, place, offsets, expert_of, row_of, totals, chosen.shape[-1])


def next_power(number: int) -> int:
    """Return the smallest power of two that is at least a number."""
    return 1 << max(0, number - 1).bit_length()
