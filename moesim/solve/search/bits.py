"""Rows as bits: of 64 rows at once it is told which have a pick at a place, and which have no other one there.

A place is a rank or a node. The rows of a home stand in words of their own, or share one word with other small homes.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.base.compiled import compiled

WORD: Final = 64
"""Rows of a word."""


class Sets(NamedTuple):
    """The rows of every expert: ``picked`` uint64 [experts, words], the rows that pick it.

    The rows of a home are those in ``mask`` uint64 [ranks] of the words ``first`` to ``last`` - 1, int64 [ranks].
    """

    picked: Any
    first: Any
    last: Any
    mask: Any


class Crowd(NamedTuple):
    """How many picks of every row are at each place.

    ``some`` uint64 [places, words]: rows with a pick there; ``more``: with at least two; ``digits`` uint64 [places,
    digits, words]: the number in binary, lowest digit first.
    """

    some: Any
    more: Any
    digits: Any


def make_sets(routes: NDArray[np.int16], home: NDArray[np.int32], experts: int, ranks: int) -> Sets:
    """Return the rows ``routes`` [rows, picks], negative = none, that live on ``home`` [rows]; empty without rows."""
    first, last = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    mask = np.full(ranks, ~np.uint64(0))
    begin, used = 0, 0
    place = np.zeros(len(home), np.int64)
    for rank in range(ranks):
        mine = np.flatnonzero(home == rank)
        if used + len(mine) > WORD:
            begin, used = begin + 1, 0
        place[mine] = begin * WORD + used + np.arange(len(mine))
        words = -(-(used + len(mine)) // WORD)
        first[rank], last[rank] = begin, begin + max(words, 1)
        if used or len(mine) < WORD:
            mask[rank] = (1 << used + len(mine)) - (1 << used) & int(mask[rank])
        # what is left of the last word is for a home that fits in it
        begin, used = begin + (used + len(mine)) // WORD, (used + len(mine)) % WORD
    words = begin + (used > 0) if len(home) else 0
    picked = np.zeros((experts, words), np.uint64)
    row, pick = np.nonzero(routes >= 0)
    bit = np.uint64(1) << (place[row] % WORD).astype(np.uint64)
    np.bitwise_or.at(picked, (routes[row, pick], place[row] // WORD), bit)
    return Sets(picked, first, last, mask)


def make_crowd(places: int, sets: Sets, most: int) -> Crowd:
    """Return that no row of ``sets`` has picks at any of so many places; it can have ``most`` at one of them."""
    words = sets.picked.shape[1]
    empty = np.zeros((places, words), np.uint64)
    return Crowd(empty, empty.copy(), np.zeros((places, max(most.bit_length(), 1), words), np.uint64))


@compiled
def ones(word: Any) -> Any:
    """Return how many bits of a uint64 are set; compilers know this form as one instruction."""
    word = word - (word >> np.uint64(1) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + (word >> np.uint64(2) & np.uint64(0x3333333333333333))
    word = word + (word >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return word * np.uint64(0x0101010101010101) >> np.uint64(56)


@compiled
def look(
    sets: Sets, some: Any, more: Any, place: Any, expert: int, before: Any, after: Any, index: int, left: Any,
    came: Any,
) -> int:  # fmt: skip
    """Look at where the picks of an expert go; return the words looked at.

    Parameters
    ----------
    some, more
        Of a :class:`Crowd`.
    place
        The place of every rank, int32 [ranks].
    before, after
        Serving ranks of every home, ``before[expert]`` and ``after[index]``, int32 [..., ranks].
    left, came
        Out, int64 [ranks]: of each home's rows those that leave a place, and reach one, by this pick alone; where the
        place stays the same 0.
    """
    picked, first, last, mask = sets
    looked = 0
    for home in range(len(place)):
        old, new = place[before[expert, home]], place[after[index, home]]
        left[home] = came[home] = 0
        if old == new:
            continue
        gone = reached = np.uint64(0)
        within = mask[home]
        for word in range(first[home], last[home]):
            rows = picked[expert, word] & within
            gone += ones(rows & ~more[old, word])
            reached += ones(rows & ~some[new, word])
        left[home], came[home] = gone, reached
        looked += last[home] - first[home]
    return looked


@compiled
def carry(
    sets: Sets, crowd: Crowd, place: Any, expert: int, before: Any, after: Any, index: int, left: Any, came: Any
) -> int:
    """Carry the picks of an expert to where they go; for all else see :func:`look`."""
    picked, first, last, mask = sets
    some, more, digits = crowd
    # rows of different homes are different bits: none of what is carried below changes what is seen here
    looked = look(sets, some, more, place, expert, before, after, index, left, came)
    for home in range(len(place)):
        old, new = place[before[expert, home]], place[after[index, home]]
        if old == new:
            continue
        for word in range(first[home], last[home]):
            rows = picked[expert, word] & mask[home]
            # one pick less at the old place
            borrow = rows
            several = np.uint64(0)
            for digit in range(digits.shape[1]):
                now = digits[old, digit, word] ^ borrow
                digits[old, digit, word] = now
                borrow &= now
                if digit > 0:
                    several |= now
            more[old, word] = several
            some[old, word] = several | digits[old, 0, word]
            _put(some, more, digits, new, word, rows)
    return looked


@compiled
def fill(sets: Sets, crowd: Crowd, place: Any, serves: Any) -> None:
    """Put all picks where ``serves`` int32 [experts, ranks] sends them."""
    picked, first, last, mask = sets
    some, more, digits = crowd
    some[:] = 0
    more[:] = 0
    digits[:] = 0
    for expert in range(len(picked)):
        for home in range(len(place)):
            for word in range(first[home], last[home]):
                _put(some, more, digits, place[serves[expert, home]], word, picked[expert, word] & mask[home])


@compiled
def _put(some: Any, more: Any, digits: Any, place: int, word: int, rows: Any) -> None:
    more[place, word] |= rows & some[place, word]
    some[place, word] |= rows
    for digit in range(digits.shape[1]):
        was = digits[place, digit, word]
        digits[place, digit, word] = was ^ rows
        rows &= was
