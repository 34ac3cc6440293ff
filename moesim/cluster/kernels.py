"""Loops over rank pairs, compiled by numba; :class:`moesim.cluster.paths.Paths` is their face.

Every kernel takes the compiled tables in the order of ``Paths.tables()``. A pair inside a node travels on
plane 0, any other pair on plane 1; where a relay is set, a cross-node pair first hops (plane 0) to the rank
of its own node that sits on the target's rail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from moesim.base.arrays import Array

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile on first use, keep the machine code on disk."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))


@compiled
def meet(plane: int, s: int, t: int, chain_start: Array, chain_vertex: Array, ranks: int) -> tuple[int, int]:
    """Return how many links of both chains two ranks of one attachment point use: up to where the chains meet."""
    first_s, first_t = chain_start[plane * ranks + s], chain_start[plane * ranks + t]
    i, j = chain_start[plane * ranks + s + 1] - first_s, chain_start[plane * ranks + t + 1] - first_t
    while i > 1 and j > 1 and chain_vertex[first_s + i - 2] == chain_vertex[first_t + j - 2]:
        i -= 1
        j -= 1
    return i, j


@compiled
def trace_leg(
    plane: int,
    s: int,
    t: int,
    link: Array,
    share: Array,
    filled: int,
    attach: Array,
    chain_start: Array,
    chain_link: Array,
    chain_vertex: Array,
    row: Array,
    column: Array,
    core_start: Array,
    core_link: Array,
    core_share: Array,
) -> int:
    """Append the links and shares of one leg to the buffers and return the new fill."""
    if s == t:
        return filled
    ranks = attach.shape[1]
    first_s, first_t = chain_start[plane * ranks + s], chain_start[plane * ranks + t]
    a, b = attach[plane, s], attach[plane, t]
    if a == b:
        i, j = meet(plane, s, t, chain_start, chain_vertex, ranks)
    else:
        i, j = chain_start[plane * ranks + s + 1] - first_s, chain_start[plane * ranks + t + 1] - first_t
    for k in range(i):
        link[filled] = chain_link[first_s + k]
        share[filled] = 1.0
        filled += 1
    if a != b:
        pair = row[a] + column[b]
        for k in range(core_start[pair], core_start[pair + 1]):
            link[filled] = core_link[k]
            share[filled] = core_share[k]
            filled += 1
    for k in range(j):
        # the two directions of a cable are neighbours: 2k and 2k + 1
        link[filled] = chain_link[first_t + j - 1 - k] ^ 1
        share[filled] = 1.0
        filled += 1
    return filled


@compiled
def trace_pair(
    s: int,
    t: int,
    link: Array,
    share: Array,
    node: Array,
    relay: Array,
    attach: Array,
    chain_start: Array,
    chain_link: Array,
    chain_vertex: Array,
    row: Array,
    column: Array,
    core_start: Array,
    core_link: Array,
    core_share: Array,
) -> int:
    """Write the whole path of a pair into the buffers and return its number of links."""
    filled = 0
    plane = 0
    if node[s] != node[t]:
        plane = 1
        if relay.size > 0:
            proxy = relay[t, node[s]]
            filled = trace_leg(
                0, s, proxy, link, share, filled, attach, chain_start, chain_link, chain_vertex, row, column,
                core_start, core_link, core_share,
            )  # fmt: skip
            s = proxy
    return trace_leg(
        plane, s, t, link, share, filled, attach, chain_start, chain_link, chain_vertex, row, column,
        core_start, core_link, core_share,
    )  # fmt: skip


@compiled
def flows(
    source: Array,
    target: Array,
    links: int,
    members: Array,
    node: Array,
    relay: Array,
    attach: Array,
    chain_start: Array,
    chain_link: Array,
    chain_vertex: Array,
    row: Array,
    column: Array,
    core_start: Array,
    core_link: Array,
    core_share: Array,
) -> tuple[Array, Array, Array]:
    """Return the flat incidence (flow, link, share) of pairs."""
    link_of, share_of = np.empty(2 * links, np.int32), np.empty(2 * links, np.float64)
    total = 0
    for f in range(source.size):
        total += trace_pair(
            members[source[f]], members[target[f]], link_of, share_of, node, relay, attach, chain_start, chain_link,
            chain_vertex, row, column, core_start, core_link, core_share,
        )  # fmt: skip
    flow, link, share = np.empty(total, np.int64), np.empty(total, np.int32), np.empty(total, np.float64)
    at = 0
    for f in range(source.size):
        count = trace_pair(
            members[source[f]], members[target[f]], link_of, share_of, node, relay, attach, chain_start, chain_link,
            chain_vertex, row, column, core_start, core_link, core_share,
        )  # fmt: skip
        for k in range(count):
            flow[at + k], link[at + k], share[at + k] = f, link_of[k], share_of[k]
        at += count
    return flow, link, share


@compiled
def fold(
    source: Array,
    target: Array,
    value: Array,
    mode: int,
    members: Array,
    node: Array,
    relay: Array,
    attach: Array,
    chain_start: Array,
    chain_link: Array,
    chain_vertex: Array,
    row: Array,
    column: Array,
    core_start: Array,
    core_link: Array,
    core_share: Array,
) -> Array:
    """Return per pair: mode 0 the sum of share x value over its links, 1 the largest value, 2 the largest share x value."""
    link_of, share_of = np.empty(2 * value.size, np.int32), np.empty(2 * value.size, np.float64)
    out = np.zeros(source.size, np.float64)
    for f in range(source.size):
        count = trace_pair(
            members[source[f]], members[target[f]], link_of, share_of, node, relay, attach, chain_start, chain_link,
            chain_vertex, row, column, core_start, core_link, core_share,
        )  # fmt: skip
        for k in range(count):
            if mode == 0:
                out[f] += share_of[k] * value[link_of[k]]
            elif mode == 1:
                out[f] = max(out[f], value[link_of[k]])
            else:
                out[f] = max(out[f], share_of[k] * value[link_of[k]])
    return out


@compiled
def add_leg(
    plane: int,
    s: int,
    t: int,
    amount: float,
    ends: Array,
    core: Array,
    out: Array,
    attach: Array,
    chain_start: Array,
    chain_link: Array,
    chain_vertex: Array,
    row: Array,
    column: Array,
) -> None:
    """Add one leg's bytes to the sums of its chain ends and core pair; only chains that meet early touch links."""
    a, b = attach[plane, s], attach[plane, t]
    if a != b:
        core[row[a] + column[b]] += amount
        ends[0, plane, s] += amount
        ends[1, plane, t] += amount
        return
    ranks = attach.shape[1]
    i, j = meet(plane, s, t, chain_start, chain_vertex, ranks)
    first_s, first_t = chain_start[plane * ranks + s], chain_start[plane * ranks + t]
    if i == chain_start[plane * ranks + s + 1] - first_s:
        ends[0, plane, s] += amount
        ends[1, plane, t] += amount
        return
    for k in range(i):
        out[chain_link[first_s + k]] += amount
    for k in range(j):
        out[chain_link[first_t + k] ^ 1] += amount


@compiled
def link_bytes(
    traffic: Array,
    links: int,
    members: Array,
    node: Array,
    relay: Array,
    attach: Array,
    chain_start: Array,
    chain_link: Array,
    chain_vertex: Array,
    row: Array,
    column: Array,
    core_start: Array,
    core_link: Array,
    core_share: Array,
) -> Array:
    """Return bytes per link [batch, links] of traffic [batch, R, R]; the diagonal carries nothing."""
    batches, ranks = traffic.shape[0], attach.shape[1]
    out = np.zeros((batches, links), np.float64)
    ends = np.empty((2, 2, ranks), np.float64)
    core = np.empty(core_start.size - 1, np.float64)
    for b in range(batches):
        ends[:] = 0.0
        core[:] = 0.0
        for i in range(traffic.shape[1]):
            for j in range(traffic.shape[2]):
                amount = traffic[b, i, j]
                if i == j or amount == 0.0:
                    continue
                s, t, plane = members[i], members[j], 0
                if node[s] != node[t]:
                    plane = 1
                    if relay.size > 0 and relay[t, node[s]] != s:
                        proxy = relay[t, node[s]]
                        add_leg(
                            0, s, proxy, amount, ends, core, out[b], attach, chain_start, chain_link, chain_vertex,
                            row, column,
                        )  # fmt: skip
                        s = proxy
                add_leg(
                    plane, s, t, amount, ends, core, out[b], attach, chain_start, chain_link, chain_vertex, row, column
                )
        for plane in range(2):
            for r in range(ranks):
                if ends[0, plane, r] == 0.0 and ends[1, plane, r] == 0.0:
                    continue
                for k in range(chain_start[plane * ranks + r], chain_start[plane * ranks + r + 1]):
                    out[b, chain_link[k]] += ends[0, plane, r]
                    out[b, chain_link[k] ^ 1] += ends[1, plane, r]
        for pair in range(core.size):
            if core[pair] != 0.0:
                for k in range(core_start[pair], core_start[pair + 1]):
                    out[b, core_link[k]] += core_share[k] * core[pair]
    return out


@compiled
def slowest_leg(
    plane: int,
    s: int,
    t: int,
    value: Array,
    ends: Array,
    core: Array,
    attach: Array,
    chain_start: Array,
    chain_link: Array,
    chain_vertex: Array,
    row: Array,
    column: Array,
) -> float:
    """Return the largest value on one leg, from the maxima of its two chains and its core pair."""
    a, b = attach[plane, s], attach[plane, t]
    if a != b:
        return max(ends[0, plane, s], ends[1, plane, t], core[row[a] + column[b]])  # type: ignore[no-any-return]
    ranks = attach.shape[1]
    i, j = meet(plane, s, t, chain_start, chain_vertex, ranks)
    first_s, first_t = chain_start[plane * ranks + s], chain_start[plane * ranks + t]
    if i == chain_start[plane * ranks + s + 1] - first_s:
        return max(ends[0, plane, s], ends[1, plane, t])  # type: ignore[no-any-return]
    worst = 0.0
    for k in range(i):
        worst = max(worst, value[chain_link[first_s + k]])
    for k in range(j):
        worst = max(worst, value[chain_link[first_t + k] ^ 1])
    return worst


@compiled
def slowest_matrix(
    value: Array,
    members: Array,
    node: Array,
    relay: Array,
    attach: Array,
    chain_start: Array,
    chain_link: Array,
    chain_vertex: Array,
    row: Array,
    column: Array,
    core_start: Array,
    core_link: Array,
    core_share: Array,
) -> Array:
    """Return the largest value on the path of every pair [batch, R, R] from values per link [batch, links]."""
    batches, ranks, wanted = value.shape[0], attach.shape[1], members.size
    out = np.zeros((batches, wanted, wanted), np.float64)
    ends = np.empty((2, 2, ranks), np.float64)
    core = np.empty(core_start.size - 1, np.float64)
    for b in range(batches):
        ends[:] = 0.0
        core[:] = 0.0
        for plane in range(2):
            for r in range(ranks):
                for k in range(chain_start[plane * ranks + r], chain_start[plane * ranks + r + 1]):
                    ends[0, plane, r] = max(ends[0, plane, r], value[b, chain_link[k]])
                    ends[1, plane, r] = max(ends[1, plane, r], value[b, chain_link[k] ^ 1])
        for pair in range(core.size):
            for k in range(core_start[pair], core_start[pair + 1]):
                core[pair] = max(core[pair], value[b, core_link[k]])
        for i in range(wanted):
            for j in range(wanted):
                if i == j:
                    continue
                s, t, plane, worst = members[i], members[j], 0, 0.0
                if node[s] != node[t]:
                    plane = 1
                    if relay.size > 0 and relay[t, node[s]] != s:
                        proxy = relay[t, node[s]]
                        worst = slowest_leg(
                            0, s, proxy, value[b], ends, core, attach, chain_start, chain_link, chain_vertex, row,
                            column,
                        )  # fmt: skip
                        s = proxy
                out[b, i, j] = max(
                    worst,
                    slowest_leg(
                        plane, s, t, value[b], ends, core, attach, chain_start, chain_link, chain_vertex, row, column
                    ),
                )
    return out
