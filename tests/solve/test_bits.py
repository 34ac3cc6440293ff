"""Bits say of rows what counting says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.solve.search.bits import WORD, carry, fill, look, make_crowd, make_sets, ones

EXPERTS, PICKS = 9, 5


@settings(deadline=None)
@given(word=st.integers(0, 2**64 - 1))
def test_ones_counts_bits(word: int) -> None:
    assert ones(np.uint64(word)) == word.bit_count()


@pytest.mark.parametrize(("ranks", "rows"), [(6, 60), (3, 500), (40, 300), (4, 4 * WORD), (300, 700), (5, 0)])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_looking_and_carrying_count_rows(ranks: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    routes = np.array([rng.permutation(EXPERTS)[:PICKS] for _ in range(rows)], np.int16).reshape(rows, PICKS)
    routes[rng.random(routes.shape) < 0.1] = -1
    # as many rows everywhere, so that words are full where they are a multiple of 64
    home = rng.permutation(np.arange(rows) % ranks).astype(np.int32)
    place = (np.arange(ranks) % 3).astype(np.int32)
    sets = make_sets(routes, home, EXPERTS, ranks)
    assert sets.picked.shape[1] <= 2 * (rows // WORD + ranks)
    crowd = make_crowd(3, sets, PICKS)
    serves = rng.integers(ranks, size=(EXPERTS, ranks)).astype(np.int32)
    fill(sets, crowd, place, serves)
    if not rows:
        return
    left, came = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    for _ in range(10):
        expert = int(rng.integers(EXPERTS))
        after = serves[expert : expert + 1].copy()
        after[0, rng.random(ranks) < 0.7] = rng.integers(ranks)
        at = np.zeros((3, rows), np.int64)
        row, pick = np.nonzero(routes >= 0)
        np.add.at(at, (place[serves[routes[row, pick], home[row]]], row), 1)
        picking = (routes == expert).any(axis=1)
        expected = np.zeros((2, ranks), np.int64)
        for rank in range(ranks):
            old, new = place[serves[expert, rank]], place[after[0, rank]]
            mine = picking & (home == rank)
            if old != new:
                expected[:, rank] = (at[old, mine] == 1).sum(), (at[new, mine] == 0).sum()
        look(sets, crowd.some, crowd.more, place, expert, serves, after, 0, left, came)
        np.testing.assert_array_equal([left, came], expected)
        left[:] = came[:] = -1
        carry(sets, crowd, place, expert, serves, after, 0, left, came)
        np.testing.assert_array_equal([left, came], expected)
        serves[expert] = after[0]
        kept = [part.copy() for part in crowd]
        fill(sets, crowd, place, serves)
        for part, incremental in zip(crowd, kept, strict=True):
            np.testing.assert_array_equal(incremental, part)
