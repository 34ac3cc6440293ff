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
