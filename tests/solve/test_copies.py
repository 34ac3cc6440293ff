"""What must leave, against brute force over all placements of small layers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.solve.copies import fewest_copies, leaving, pairs_together
from moesim.solve.working import _envelope

NODE = np.array([0, 0, 1], np.int32)
LANDING = np.array([[0, 2], [1, 2], [0, 2]], np.int32)


def least_cover(missing: set[int], places: list[set[int]]) -> int:
    """The fewest places that hold all of ``missing``."""
    return next(
        size
        for size in range(len(places) + 1)
        for some in itertools.combinations(places, size)
        if missing <= set().union(*some)
    )


def forwarded(token: set[int], own: int, ranks: list[set[int]]) -> int:
    """The fewest copies for other ranks than those where traffic of the home rank lands."""
    kept = set().union(*(ranks[rank] for rank in LANDING[own]))
    return least_cover(token - kept, [one for rank, one in enumerate(ranks) if rank not in LANDING[own]])


def served(routes: NDArray[np.int16], home: NDArray[np.int32], held: tuple[tuple[int, ...], ...]) -> dict[str, float]:
    """What leaves at least under the best policy; every number by its own policy."""
    ranks = [set(one) for one in held]
    nodes = [set().union(*(ranks[r] for r in np.flatnonzero(n == NODE))) for n in range(2)]
    out = dict.fromkeys(
        (
            "copies_total",
            "pairs_away",
            "copies_away",
            "copies_forwarded",
            "pairs_across",
            "copies_across",
            "nodes_across",
        ),
        0,
    )
    for picks, own in zip(routes, home, strict=True):
        token = {int(e) for e in picks if e >= 0}
        out["copies_total"] += least_cover(token, ranks)
        away, across = token - ranks[own], token - nodes[NODE[own]]
        others = [one for r, one in enumerate(ranks) if r != own]
        far = [one for r, one in enumerate(ranks) if NODE[r] != NODE[own]]
        out["copies_forwarded"] += forwarded(token, own, ranks)
        out["pairs_away"] += len(away)
        out["copies_away"] += least_cover(away, others)
        out["pairs_across"] += len(across)
        out["copies_across"] += least_cover(across, far)
        out["nodes_across"] += least_cover(across, [nodes[1 - NODE[own]]])
    return out


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), slots=st.integers(2, 3), picks=st.integers(1, 3))
def test_no_placement_of_a_small_layer_moves_less(seed: int, slots: int, picks: int) -> None:
    rng = np.random.default_rng(seed)
    experts = 4 + seed % 2
    liking = rng.normal(size=experts) * rng.choice([0, 2]) + rng.gumbel(size=(8, experts))
    routes = np.argsort(-liking, axis=1)[:, :picks].astype(np.int16)
    routes[rng.random(routes.shape) < 0.2] = -1
    home = rng.integers(3, size=8).astype(np.int32)
    least = leaving(routes[:, None], home, NODE, LANDING, experts, slots)
    assert least.pairs[0] == (routes >= 0).sum()
    assert least.active[0] == len(set(routes[routes >= 0].tolist()))
    # an empty slot helps nobody
    for held in itertools.product(itertools.combinations(range(experts), slots), repeat=3):
        if len(set().union(*held)) == experts:
            for name, count in served(routes, home, held).items():
                assert getattr(least, name)[0] <= count + 1e-9, (name, held)


def test_popularity_is_exact_for_one_place() -> None:
    # node 0 holds experts 0 and 1 at best; five picks of others leave it
    routes = np.array([[0], [0], [1], [1], [2], [2], [3], [4], [5]], np.int16)
    home, node, landing = np.zeros(9, np.int32), np.array([0, 1], np.int32), np.array([[0, 1], [0, 1]], np.int32)
    least = leaving(routes[:, None], home, node, landing, 6, 2)
    assert least.pairs_across[0] == least.pairs_away[0] == 5
    assert least.pairs_across_home[0].tolist() == [5, 0]
    # both ranks want experts 0 and 1, but 2 and 3 must lie somewhere: of 12 picks four more leave
    routes = np.array([[0], [0], [1], [1], [2], [3]] * 2, np.int16)
    home = np.repeat(np.arange(2, dtype=np.int32), 6)
    least = leaving(routes[:, None], home, node, landing, 4, 2)
    assert least.pairs_across_home[0].tolist() == [2, 2]
    assert least.pairs_across[0] == 6


def test_pairs_that_lie_together_are_counted_by_copies_of_experts() -> None:
    # three places of two experts hold three pairs of six experts: one partner each
    weight = np.zeros((6, 6), int)
    for one, other, times in [(0, 1, 9), (0, 2, 8), (3, 4, 2), (4, 5, 1)]:
        weight[one, other] = weight[other, one] = times
    # partners chosen one by one: 9 + 9 + 8 + 2 + 2 + 1, each pair from both sides
    assert pairs_together(weight, 6, 2) == 31 / 2
    # one more copy lets expert 0 lie with 2 as well
    assert pairs_together(weight, 7, 2) == 39 / 2
    assert pairs_together(weight, 6, 1) == 0
    assert pairs_together(weight, 60, 6) == 20


@pytest.mark.parametrize(
    ("picks", "pairs", "most", "copies"),
    [(6, 0, 3, 6), (6, 3, 3, 3), (6, 6, 3, 2), (6, 100, 3, 2), (6, 1.5, 3, 4.5), (0, 0, 3, 0), (5, 9, 1, 5)],
)
def test_copies_are_fewest_when_all_hold_alike(picks: float, pairs: float, most: int, copies: float) -> None:
    assert fewest_copies(picks, pairs, most) == pytest.approx(copies)


@given(st.lists(st.floats(0, 10), min_size=2, max_size=8), st.floats(0, 1))
def test_an_envelope_lies_below_every_mixture(values: list[float], at: float) -> None:
    x, y = np.arange(len(values), dtype=float), np.array(values)
    place = at * x[-1]
    below = _envelope(x, y, np.array([place]))[0]
    mixed = [
        y[a] if a == b else (y[a] * (b - place) + y[b] * (place - a)) / (b - a)
        for a in range(len(x)) for b in range(a, len(x)) if a <= place <= b and (a < b or a == place)
    ]  # fmt: skip
    assert below == pytest.approx(min(mixed), abs=1e-9)


def test_what_a_node_has_no_room_for_lies_on_other_ranks() -> None:
    # home 0 picks seven experts, its node holds four: three lie elsewhere, on two ranks of two slots
    routes = np.arange(7, dtype=np.int16)[:, None, None]
    landing = np.array([[0, 2], [1, 3], [0, 2], [1, 3]], np.int32)
    least = leaving(routes, np.zeros(7, np.int32), np.array([0, 0, 1, 1], np.int32), landing, 8, 2)
    assert least.servers_home[0].tolist() == [2, 0, 0, 0]
