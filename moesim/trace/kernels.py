"""Compiled loops over routes: validation and counting.

Every loop takes routes `[tokens, layers, top_k]` in which -1 means "no expert".
"""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled, splitmix64


@compiled
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


@compiled
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


@compiled
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


@compiled
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


@compiled
def mix_picks(picks: Array, swaps: int, state: Array) -> None:
    """Exchange picks of tokens at random, no expert twice in one; ``picks`` int16 [layers, tokens, top_k], in place.

    ``swaps`` are tried in each layer; ``state`` uint64 [1] is that of the generator.
    """
    layers, tokens, top_k = picks.shape
    for layer in range(layers):
        for _ in range(swaps):
            first, second = draw(state) % tokens, draw(state) % tokens
            here, there = draw(state) % top_k, draw(state) % top_k
            old, new = picks[layer, first, here], picks[layer, second, there]
            twice = False
            for place in range(top_k):
                twice |= picks[layer, first, place] == new and new >= 0
                twice |= picks[layer, second, place] == old and old >= 0
            if not twice:
                picks[layer, first, here], picks[layer, second, there] = new, old


@compiled
def draw(state: Array) -> int:
    """Return a whole number of 31 bits and move ``state`` uint64 [1] on (SplitMix64)."""
    drawn = splitmix64(state[0])
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    return int(drawn >> np.uint64(33))
