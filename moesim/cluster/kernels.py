"""Loops over rank pairs, compiled by numba; :class:`moesim.cluster.paths.Paths` is their face.

Every kernel takes the compiled tables in the order of ``Paths.tables()``. A pair inside a node travels on
plane 0, any other pair on plane 1; where a relay is set, a cross-node pair first hops (plane 0) to the rank
of its own node that sits on the target's rail.
"""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import ZERO, compiled


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
    filled = ZERO
    plane = 0
    if node[s] != node[t]:
        plane = 1
        if relay.size > 0:
            proxy = relay[t, node[s]]
            filled = trace_leg(
                ZERO, s, proxy, link, share, filled, attach, chain_start, chain_link, chain_vertex, row, column,
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
    """Return per pair the sum of share x value over its links (mode 0), the largest value (1) or share x value (2)."""
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
def alone(chain_start: Array, chain_vertex: Array) -> Array:
    """Return whether no other chain of the plane runs below the top of a chain: then chains meet at the top only."""
    rows = chain_start.size - 1
    out = np.ones(rows, np.bool_)
    visits = np.zeros(chain_vertex.max() + 1 if chain_vertex.size else 0, np.int64)
    for first, last in ((0, rows // 2), (rows // 2, rows)):
        visits[:] = 0
        for r in range(first, last):
            for k in range(chain_start[r], chain_start[r + 1] - 1):
                visits[chain_vertex[k]] += 1
        for r in range(first, last):
            for k in range(chain_start[r], chain_start[r + 1] - 1):
                if visits[chain_vertex[k]] > 1:
                    out[r] = False
    return out


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
    # bytes are summed per chain end and core pair first; the links get them once, below the loop over pairs
    ends = np.empty((2, 2 * ranks), np.float64)
    core = np.empty(core_start.size - 1, np.float64)
    free = alone(chain_start, chain_vertex)
    plain = relay.size == 0 and free.all()
    for batch in range(batches):
        ends[:] = 0.0
        core[:] = 0.0
        if plain:
            # no relays and no shared chains, as almost everywhere: a pair's path is two chain ends and a core
            for i in range(traffic.shape[1]):
                s = members[i]
                for j in range(traffic.shape[2]):
                    amount = traffic[batch, i, j]
                    t = members[j]
                    plane = 1 if node[s] != node[t] else 0
                    if i != j and amount != 0.0:
                        ends[0, plane * ranks + s] += amount
                        ends[1, plane * ranks + t] += amount
                        a, b = attach[plane, s], attach[plane, t]
                        if a != b:
                            core[row[a] + column[b]] += amount
        for i in range(0 if plain else traffic.shape[1]):
            for j in range(traffic.shape[2]):
                amount = traffic[batch, i, j]
                if i == j or amount == 0.0:
                    continue
                s, t = members[i], members[j]
                crosses = node[s] != node[t]
                proxy = relay[t, node[s]] if crosses and relay.size > 0 else s
                for leg in range(0 if proxy != s else 1, 2):
                    # the hop to the relay is leg 0, the rest leg 1
                    plane = 1 if crosses and leg == 1 else 0
                    x, y = (s, proxy) if leg == 0 else (proxy, t)
                    a, b = attach[plane, x], attach[plane, y]
                    if a != b or free[plane * ranks + x]:
                        ends[0, plane * ranks + x] += amount
                        ends[1, plane * ranks + y] += amount
                        if a != b:
                            core[row[a] + column[b]] += amount
                        continue
                    m, n = meet(plane, x, y, chain_start, chain_vertex, ranks)
                    for k in range(m):
                        out[batch, chain_link[chain_start[plane * ranks + x] + k]] += amount
                    for k in range(n):
                        out[batch, chain_link[chain_start[plane * ranks + y] + k] ^ 1] += amount
        for r in range(2 * ranks):
            for k in range(chain_start[r], chain_start[r + 1]):
                out[batch, chain_link[k]] += ends[0, r]
                out[batch, chain_link[k] ^ 1] += ends[1, r]
        for pair in range(core.size):
            if core[pair] != 0.0:
                for k in range(core_start[pair], core_start[pair + 1]):
                    out[batch, core_link[k]] += core_share[k] * core[pair]
    return out


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
    ends = np.empty((2, 2 * ranks), np.float64)
    core = np.empty(core_start.size - 1, np.float64)
    free = alone(chain_start, chain_vertex)
    plain = relay.size == 0 and free.all()
    for batch in range(batches):
        ends[:] = 0.0
        core[:] = 0.0
        for r in range(2 * ranks):
            for k in range(chain_start[r], chain_start[r + 1]):
                ends[0, r] = max(ends[0, r], value[batch, chain_link[k]])
                ends[1, r] = max(ends[1, r], value[batch, chain_link[k] ^ 1])
        for pair in range(core.size):
            for k in range(core_start[pair], core_start[pair + 1]):
                core[pair] = max(core[pair], value[batch, core_link[k]])
        if plain:
            for i in range(wanted):
                s = members[i]
                for j in range(wanted):
                    t = members[j]
                    plane = 1 if node[s] != node[t] else 0
                    a, b = attach[plane, s], attach[plane, t]
                    worst = max(ends[0, plane * ranks + s], ends[1, plane * ranks + t])
                    if a != b:
                        worst = max(worst, core[row[a] + column[b]])
                    out[batch, i, j] = worst
                out[batch, i, i] = 0.0
            continue
        for i in range(wanted):
            for j in range(wanted):
                if i == j:
                    continue
                s, t, worst = members[i], members[j], 0.0
                crosses = node[s] != node[t]
                proxy = relay[t, node[s]] if crosses and relay.size > 0 else s
                for leg in range(0 if proxy != s else 1, 2):
                    plane = 1 if crosses and leg == 1 else 0
                    x, y = (s, proxy) if leg == 0 else (proxy, t)
                    a, b = attach[plane, x], attach[plane, y]
                    if a != b or free[plane * ranks + x]:
                        worst = max(worst, ends[0, plane * ranks + x], ends[1, plane * ranks + y])
                        if a != b:
                            worst = max(worst, core[row[a] + column[b]])
                        continue
                    m, n = meet(plane, x, y, chain_start, chain_vertex, ranks)
                    for k in range(m):
                        worst = max(worst, value[batch, chain_link[chain_start[plane * ranks + x] + k]])
                    for k in range(n):
                        worst = max(worst, value[batch, chain_link[chain_start[plane * ranks + y] + k] ^ 1])
                out[batch, i, j] = worst
    return out
