"""Device code of grouping: a stable counting sort of picks by expert, and which expert a block of rows belongs to."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["picks", "chunks"])
def histogram(experts, counts, picks, chunks, PICKS: tl.constexpr, EXPERTS: tl.constexpr, E: tl.constexpr):
    """Count the picks of each expert in one chunk of `PICKS`; `counts` is [E, chunks]."""
    chunk = tl.program_id(0)
    at = chunk * PICKS + tl.arange(0, PICKS)
    chosen = tl.load(experts + at, mask=at < picks, other=-1).to(tl.int32)
    bins = tl.arange(0, EXPERTS)
    found = tl.sum((chosen[:, None] == bins[None, :]).to(tl.int32), axis=0)
    tl.store(counts + bins * chunks + chunk, found, mask=bins < E)


@triton.jit(do_not_specialize=["picks", "chunks"])
def scatter(experts, counts, ends, order, place, picks, chunks, E: tl.constexpr, PICKS: tl.constexpr):
    """Write where each pick goes: its expert's rows begin after those of smaller experts and earlier chunks.

    `ends` is the running sum of `counts`, both [E, chunks] in that order, so a chunk's first row is one subtraction.
    """
    chunk = tl.program_id(0)
    local = tl.arange(0, PICKS)
    at = chunk * PICKS + local
    inside = at < picks
    chosen = tl.load(experts + at, mask=inside, other=-1).to(tl.int32)
    # picks of one expert keep their order, so that the same input gives the same rows
    earlier = (chosen[:, None] == chosen[None, :]) & (local[None, :] < local[:, None])
    rank = tl.sum(earlier.to(tl.int32), axis=1)
    # a pick of nobody (-1: dropped) goes nowhere
    used = inside & (chosen >= 0) & (chosen < E)
    cell = chosen * chunks + chunk
    start = tl.load(ends + cell, mask=used, other=0) - tl.load(counts + cell, mask=used, other=0)
    row = start + rank
    tl.store(order + row, at, mask=used)
    tl.store(place + at, tl.where(used, row, -1), mask=inside)


@triton.jit(do_not_specialize=["chunks", "bound"])
def block_map(
    ends, offsets, expert_of, row_of, totals, chunks, bound, E: tl.constexpr, EXPERTS: tl.constexpr,
    SMALLEST: tl.constexpr, HEIGHTS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Tell each block of rows its expert and first row, for every block height at once; one program an expert.

    `expert_of` and `row_of` are [HEIGHTS, bound], `totals` [HEIGHTS]; height h has `SMALLEST << h` rows.
    """
    expert = tl.program_id(0)
    bins = tl.arange(0, EXPERTS)
    stop = tl.load(ends + bins * chunks + chunks - 1, mask=bins < E, other=0)
    start = tl.load(ends + (bins - 1) * chunks + chunks - 1, mask=(bins > 0) & (bins < E), other=0)
    rows = tl.where(bins < E, stop - start, 0)
    mine_start = tl.sum(tl.where(bins == expert, start, 0))
    mine = tl.sum(tl.where(bins == expert, rows, 0))
    tl.store(offsets + expert, mine_start)
    if expert == E - 1:
        tl.store(offsets + E, mine_start + mine)
    for level in tl.static_range(HEIGHTS):
        height = SMALLEST << level
        blocks = (rows + height - 1) // height
        first = tl.sum(tl.where(bins < expert, blocks, 0))
        count = (mine + height - 1) // height
        if expert == E - 1:
            tl.store(totals + level, first + count)
        for at in range(0, count, BLOCKS):
            block = at + tl.arange(0, BLOCKS)
            where = level * bound + first + block
            tl.store(expert_of + where, tl.full((BLOCKS,), 0, tl.int32) + expert, mask=block < count)
            tl.store(row_of + where, mine_start + block * height, mask=block < count)
