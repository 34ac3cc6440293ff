"""Random small worlds: nodes of unequal sizes, placements with replicas and holes, batches with dropped picks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from moesim.placement import EMPTY, Placement


@dataclass
class World:
    routes: np.ndarray
    home: np.ndarray
    placement: Placement
    node: np.ndarray
    landing: np.ndarray

    def arguments(self) -> tuple[Any, ...]:
        return self.routes, self.home, self.placement, self.node, self.landing


def random_placement(
    rng: np.random.Generator, layers: int, ranks: int, slots: int, experts: int, holes: float = 0.3
) -> Placement:
    result = np.full((layers, ranks, slots), EMPTY)
    for layer in range(layers):
        free = [slots] * ranks
        held: list[set[int]] = [set() for _ in range(ranks)]
        seats = rng.permutation(np.repeat(np.arange(ranks), slots))
        wanted = [*rng.permutation(experts), *rng.integers(0, experts, ranks * slots - experts)]
        for number, expert in enumerate(wanted):
            rank = int(seats[number])
            if number >= experts and (expert in held[rank] or rng.random() < holes):
                continue
            result[layer, rank, slots - free[rank]] = expert
            held[rank].add(int(expert))
            free[rank] -= 1
        for rank in range(ranks):
            result[layer, rank] = rng.permutation(result[layer, rank])
    return Placement(result, experts)


def random_landing(rng: np.random.Generator, node: np.ndarray) -> np.ndarray:
    ranks, nodes = len(node), int(node.max()) + 1
    landing = np.empty((ranks, nodes), dtype=np.int32)
    for place in range(nodes):
        members = np.flatnonzero(node == place)
        landing[:, place] = rng.choice(members, ranks)
        landing[members, place] = members
    return landing


def random_routes(
    rng: np.random.Generator, tokens: int, layers: int, experts: int, picks: int, dropped: float = 0.1
) -> np.ndarray:
    routes = np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :picks].astype(np.int16)
    routes[rng.random(routes.shape) < dropped] = -1
    return routes


def make_world(
    seed: int, node_sizes: list[int], layers: int, slots: int, experts: int, picks: int, tokens: int
) -> World:
    rng = np.random.default_rng(seed)
    # ranks of a node need not stand together
    node = rng.permutation(np.repeat(np.arange(len(node_sizes)), node_sizes)).astype(np.int32)
    ranks = len(node)
    slots = max(slots, -(-experts // ranks))
    return World(
        random_routes(rng, tokens, layers, experts, min(picks, experts)),
        rng.integers(0, ranks, tokens).astype(np.int32),
        random_placement(rng, layers, ranks, slots, experts),
        node,
        random_landing(rng, node),
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    return make_world(
        seed=draw(st.integers(0, 2**32 - 1)),
        node_sizes=draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)),
        layers=draw(st.integers(1, 3)),
        slots=draw(st.integers(1, 4)),
        experts=draw(st.integers(1, 12)),
        picks=draw(st.integers(1, 6)),
        tokens=draw(st.integers(0, 40)),
    )
