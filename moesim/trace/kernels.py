"""Compiled loops over routes: validation and counting.

Every loop takes routes `[tokens, layers, top_k]` in which -1 means "no expert".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]


@njit(cache=True)  # type: ignore[untyped-decorator]
def first_fault(routes: Array, experts: int) -> tuple[int, int, int, bool]:
    """Return (token, layer, value, is_duplicate) of the first bad pick, or (-1, -1, -1, False)."""
    tokens, layers, picks = routes.shape
    for t in range(tokens):
        for layer in range(layers):
            for k in range(picks):
                value = routes[t, layer, k]
                if value < -1 or value >= experts:
                    return t, layer, value, False
                if value < 0:
                    continue
                for other in range(k):
                    if routes[t, layer, other] == value:
                        return t, layer, value, True
    return -1, -1, -1, False


@njit(cache=True)  # type: ignore[untyped-decorator]
def count_picks(routes: Array, group: Array, groups: int, experts: int) -> Array:
    """Return how often each expert was picked, int64 [groups, layers, experts], tokens grouped by ``group``."""
    tokens, layers, picks = routes.shape
    counts = np.zeros((groups, layers, experts), np.int64)
    for t in range(tokens):
        for layer in range(layers):
            for k in range(picks):
                value = routes[t, layer, k]
                if value >= 0:
                    counts[group[t], layer, value] += 1
    return counts


@njit(cache=True)  # type: ignore[untyped-decorator]
def count_pairs(first: Array, second: Array, experts: int) -> Array:
    """Return how often a token picks e in ``first`` and f in ``second`` [tokens, top_k], int64 [experts, experts]."""
    tokens, picks = first.shape
    pairs = np.zeros((experts, experts), np.int64)
    for t in range(tokens):
        for i in range(picks):
            e = first[t, i]
            if e < 0:
                continue
            for j in range(second.shape[1]):
                f = second[t, j]
                if f >= 0:
                    pairs[e, f] += 1
    return pairs


@njit(cache=True)  # type: ignore[untyped-decorator]
def count_reuse(routes: Array, before: Array, after: Array) -> Array:
    """Return how many picks of rows ``after`` also occur in rows ``before``, int64 [layers]."""
    layers, picks = routes.shape[1], routes.shape[2]
    again = np.zeros(layers, np.int64)
    for i in range(len(after)):
        for layer in range(layers):
            for k in range(picks):
                value = routes[after[i], layer, k]
                if value < 0:
                    continue
                for other in range(picks):
                    if routes[before[i], layer, other] == value:
                        again[layer] += 1
    return again
