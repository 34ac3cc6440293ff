"""From cables to paths: shortest by hops, then by latency; equal-cost next hops share the bytes equally.

Ranks never forward (unless the wiring says so), so without ranks the wiring falls into components: the
NVSwitch of each node, the fabric. A rank reaches a component through one port; whatever hangs on the component
as a tree (NICs, leaves under one spine) has only one way up and becomes a chain; only what is left, the core,
needs a table of pairs. Where ranks do not decompose like that (several ports into one component, direct cables
between ranks, ranks that forward), every rank is its own attachment point and the table holds all rank pairs.
"""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.cluster.paths import Paths
from moesim.cluster.walk import Core, core_paths
from moesim.cluster.wiring import Wiring, unconnected

_PICOSECOND = 1e-12
_HOP = 2.0**40  # one hop outweighs every sum of latencies below 1.1 s, in exact float64 integers
_TABLE_LIMIT = 200_000_000  # entries of a core table: 2.4 GB


def compile_paths(wiring: Wiring, relay: Array | None = None) -> Paths:
    """Compile the paths of all rank pairs.

    Parameters
    ----------
    relay
        Rank of node n through which traffic to rank t leaves node n, int32 [ranks, nodes] (PXN); None: no relay.

    Raises
    ------
    InputError
        If two ranks are not connected, or the wiring is so irregular that its table would not fit.
    """
    if relay is None:
        relay = np.zeros((0, 0), np.int32)
    cost = _HOP + np.rint(wiring.latency_s / _PICOSECOND)
    paths = _decomposed(wiring, cost, relay)
    return _all_pairs(wiring, cost, relay) if paths is None else paths


def _all_pairs(wiring: Wiring, cost: Array, relay: Array) -> Paths:
    ranks = wiring.ranks
    if relay.size:
        raise InputError("topology: pxn needs a rail-optimised shape in which every GPU has one NIC; remove pxn")
    core = Core.of(wiring, np.arange(len(wiring.tier)), cost)
    start, link, share, distance = core_paths(core, np.arange(ranks), _TABLE_LIMIT)
    if not np.isfinite(distance).all():
        s, t = np.argwhere(~np.isfinite(distance))[0]
        raise unconnected(wiring, int(s), int(t))
    every = np.arange(ranks)
    return Paths(
        members=every,
        node=wiring.node,
        relay=relay,
        attach=np.stack([every, every]),
        chain_start=np.zeros(2 * ranks + 1, np.int64),
        chain_link=np.zeros(0, np.int32),
        chain_vertex=np.zeros(0, np.int32),
        row=every * ranks,
        column=every,
        core_start=start,
        core_link=link,
        core_share=share,
        link_latency=np.repeat(wiring.latency_s, 2),
    )


class _Ports:
    """Where each rank enters each component of the wiring without ranks, and the chain from there to the core."""

    def __init__(self, wiring: Wiring, cost: Array) -> None:
        ranks = wiring.ranks
        self.cost = cost
        self.component = _components(wiring)  # per vertex; -1 for ranks
        self.of: list[dict[int, int]] = [{} for _ in range(ranks)]  # rank -> component -> cable
        self.decomposes = not wiring.through_ranks
        neighbours: dict[int, list[tuple[int, int]]] = {v: [] for v in range(ranks, len(wiring.vertices))}
        for cable, (a, b) in enumerate(wiring.end.tolist()):
            if a < ranks and b < ranks:
                self.decomposes = False
            elif a >= ranks and b >= ranks:
                neighbours[a].append((cable, b))
                neighbours[b].append((cable, a))
            else:
                rank, switch = min(a, b), max(a, b)
                home = self.of[rank]
                if int(self.component[switch]) in home:
                    self.decomposes = False
                home[int(self.component[switch])] = cable
        self.parent = _strip(neighbours)  # vertex -> (cable, next vertex towards the core)
        self.wiring = wiring

    def chain(self, rank: int, component: int) -> tuple[list[int], list[int]]:
        """Return the links and vertices from a rank up to its attachment point in a component."""
        cable = self.of[rank][component]
        at, links, vertices = rank, [], []
        while True:
            first, second = self.wiring.end[cable].tolist()
            links.append(2 * cable if first == at else 2 * cable + 1)
            at = second if first == at else first
            vertices.append(at)
            if at not in self.parent:
                return links, vertices
            cable = self.parent[at][0]


def _components(wiring: Wiring) -> Array:
    """Return the component of every vertex in the wiring without ranks, int64 [vertices]; -1 for ranks."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ranks, size = wiring.ranks, len(wiring.vertices) - wiring.ranks
    inner = (wiring.end >= ranks).all(axis=1)
    a, b = (wiring.end[inner] - ranks).T
    label = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(size, size)), directed=False)[1]
    return np.concatenate([np.full(ranks, -1), label])


def _strip(neighbours: dict[int, list[tuple[int, int]]]) -> dict[int, tuple[int, int]]:
    """Peel off vertices with one way out until only the core is left; return their way (cable, vertex)."""
    degree = {v: len(around) for v, around in neighbours.items()}
    queue = [v for v, d in degree.items() if d == 1]
    parent: dict[int, tuple[int, int]] = {}
    for v in queue:
        if degree[v] != 1:
            continue  # the last vertex of a tree: its root
        cable, up = next((c, w) for c, w in neighbours[v] if w not in parent)
        parent[v] = (cable, up)
        degree[up] -= 1
        if degree[up] == 1:
            queue.append(up)
    return parent


def _decomposed(wiring: Wiring, cost: Array, relay: Array) -> Paths | None:
    ports = _Ports(wiring, cost)
    if not ports.decomposes:
        return None
    ranks, nodes = wiring.ranks, int(wiring.node.max()) + 1
    spans: dict[int, set[int]] = {}
    for rank in range(ranks):
        for component in ports.of[rank]:
            spans.setdefault(component, set()).add(int(wiring.node[rank]))

    outer = np.full(ranks, -1, np.int64)
    for rank in range(ranks if nodes > 1 else 0):
        wide = [c for c in ports.of[rank] if len(spans[c]) > 1]
        if len(wide) > 1:
            return None
        outer[rank] = wide[0] if wide else -1
    _check_reach(wiring, outer, relay)

    tables = _Tables(wiring, ports)
    inner = np.full(ranks, -1, np.int64)
    for node in range(nodes):
        local = np.flatnonzero(wiring.node == node)
        if len(local) == 1:
            continue
        common = sorted(set.intersection(*(set(ports.of[rank]) for rank in local)))
        shared = [c for rank in local for c in ports.of[rank] if c not in common]
        if not common or len(shared) > len(set(shared)):
            return None  # some ranks of the node share what others lack
        if len(common) > 1:
            offers = np.stack([tables.costs(local, c) for c in common])
            best = offers.sum(axis=(1, 2)).argmin()
            others = np.delete(offers, best, axis=0)
            apart = ~np.eye(len(local), dtype=bool)
            if (others <= offers[best])[:, apart].any():
                return None
            common = [common[best]]
        inner[local] = common[0]
    return tables.paths(inner, outer, relay)


def _check_reach(wiring: Wiring, outer: Array, relay: Array) -> None:
    """Raise unless every cross-node pair shares a component, directly or through its relay."""
    node = wiring.node
    if len(np.unique(node)) == 1:
        return
    for t in range(wiring.ranks):
        lost = (outer[relay[t]][node] if relay.size else outer) != outer[t]
        lost |= outer[t] < 0
        lost &= node != node[t]
        if lost.any():
            raise unconnected(wiring, int(np.flatnonzero(lost)[0]), t)


class _Tables:
    """Chains and core tables of the components in use."""

    def __init__(self, wiring: Wiring, ports: _Ports) -> None:
        self.wiring, self.ports = wiring, ports
        self.points: dict[int, dict[int, int]] = {}  # component -> attachment vertex -> index in it
        self.cores: dict[int, tuple[Array, Array, Array, Array]] = {}
        self.chains: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        cables: dict[int, list[int]] = {}
        for cable, (a, b) in enumerate(wiring.end.tolist()):
            if min(a, b) >= wiring.ranks:
                cables.setdefault(int(ports.component[a]), []).append(cable)
        self.cables = cables
        for rank, entries in enumerate(ports.of):
            for component in entries:
                chain = self.chains[rank, component] = ports.chain(rank, component)
                points = self.points.setdefault(component, {})
                points.setdefault(chain[1][-1], len(points))

    def core(self, component: int) -> tuple[Array, Array, Array, Array]:
        """Return (start, link, share, distance) between the attachment points of a component."""
        if component not in self.cores:
            points = np.fromiter(self.points[component], np.int64)
            if len(points) == 1:
                empty = np.zeros(0)
                self.cores[component] = np.zeros(2, np.int64), empty, empty, np.zeros((1, 1))
            else:
                inside = np.array(self.cables.get(component, []), np.int64)
                graph = Core.of(self.wiring, inside, self.ports.cost)
                self.cores[component] = core_paths(graph, points, _TABLE_LIMIT)
        return self.cores[component]

    def costs(self, local: Array, component: int) -> Array:
        """Return the path cost between ranks of one node through a component, [ranks, ranks]; diagonal 0."""
        cost, chains = self.ports.cost, [self.chains[int(rank), component] for rank in local]
        index = self.points[component]
        distance = self.core(component)[3]
        out = np.zeros((len(chains), len(chains)))
        for i, (up, via) in enumerate(chains):
            for j, (down, through) in enumerate(chains):
                if i == j:
                    continue
                m, n = len(up), len(down)
                if via[-1] == through[-1]:
                    while m > 1 and n > 1 and via[m - 2] == through[n - 2]:
                        m, n = m - 1, n - 1
                links = [k // 2 for k in up[:m] + down[:n]]
                out[i, j] = cost[links].sum() + distance[index[via[-1]], index[through[-1]]]
        return out

    def paths(self, inner: Array, outer: Array, relay: Array) -> Paths:
        """Lay the tables out flat for the chosen component per rank and plane."""
        wiring, ranks = self.wiring, self.wiring.ranks
        used = sorted({int(c) for c in np.concatenate([inner, outer]) if c >= 0})
        first_point: dict[int, int] = {}
        row: list[int] = []
        column: list[int] = []
        start, link, share = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0)]
        pairs = steps = 0
        for component in used:
            core_start, core_link, core_share, _ = self.core(component)
            size = len(self.points[component])
            first_point[component] = len(row)
            row += [pairs + i * size for i in range(size)]
            column += list(range(size))
            start.append(core_start[1:] + steps)
            link.append(core_link)
            share.append(core_share)
            pairs, steps = pairs + size * size, steps + len(core_link)
        attach = np.full((2, ranks), -1, np.int32)
        chain_start, chain_link, chain_vertex = [0], [], []
        for plane, choice in enumerate((inner, outer)):
            for rank, component in enumerate(choice.tolist()):
                if component >= 0:
                    links, vertices = self.chains[rank, component]
                    attach[plane, rank] = first_point[component] + self.points[component][vertices[-1]]
                    chain_link += links
                    chain_vertex += vertices
                chain_start.append(len(chain_link))
        return Paths(
            members=np.arange(ranks),
            node=wiring.node,
            relay=relay,
            attach=attach,
            chain_start=np.array(chain_start, np.int64),
            chain_link=np.array(chain_link, np.int32),
            chain_vertex=np.array(chain_vertex, np.int32),
            row=np.array(row, np.int64),
            column=np.array(column, np.int64),
            core_start=np.concatenate(start),
            core_link=np.concatenate(link).astype(np.int32),
            core_share=np.concatenate(share),
            link_latency=np.repeat(wiring.latency_s, 2),
        )
