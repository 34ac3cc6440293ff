"""A schedule can be executed: sources hold what they send, nobody meets two, and serving can go on between commits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import InputError
from moesim.placement import EMPTY, Placement, migration
from moesim.placement.rounds import STORAGE, Schedule, keep_slots, schedule

from .worlds import random_placement

SIZES = st.tuples(
    st.integers(0, 10**6), st.integers(1, 2), st.integers(1, 6), st.integers(1, 5), st.integers(1, 12),
    st.sampled_from([0.0, 0.3]), st.sampled_from([None, 1, 2]),
)  # fmt: skip


def pair(seed: int, layers: int, ranks: int, slots: int, experts: int, holes: float) -> tuple[Placement, Placement]:
    rng = np.random.default_rng(seed)
    slots = min(max(slots, -(-experts // ranks)), experts)
    one, two = (random_placement(rng, layers, ranks, slots, experts, holes) for _ in range(2))
    return one, two


@given(SIZES)
@settings(max_examples=150, deadline=None)
def test_a_schedule_leads_from_one_placement_to_the_other(case: tuple) -> None:
    *sizes, staging = case
    running, planned = pair(*sizes)
    node = np.arange(running.ranks) // 2
    steps = schedule(running.experts, planned, node, staging)
    # `run` checks sources, peers and that nothing is ever lost
    reached = steps.run(running.experts)
    # a slot that is to be empty is only emptied at the end: it costs no copy
    kept = keep_slots(running.experts, planned)
    wanted = kept.experts != EMPTY
    if staging is None:
        assert np.array_equal(reached[wanted], kept.experts[wanted])
    else:  # slots of one rank may be exchanged
        assert (Placement(reached, planned.num_experts).has | ~planned.has).all()
    assert steps.staging <= (staging or 10**9)
    moves = migration(running, planned, node)
    assert len(steps) == len(moves)
    assert np.array_equal(steps.per_layer, moves.per_layer)
    assert steps.moves.between_nodes(node) == moves.between_nodes(node) or staging is not None


@given(SIZES)
@settings(max_examples=60, deadline=None)
def test_rounds_are_at_most_one_less_than_twice_the_busiest_rank(case: tuple) -> None:
    *sizes, _ = case
    running, planned = pair(*sizes)
    steps = schedule(running.experts, planned)
    for number in np.unique(steps.commit):
        part = steps.commit == number
        busiest = (
            np.bincount(steps.source[part], minlength=steps.ranks)
            + np.bincount(steps.target[part], minlength=steps.ranks)
        ).max()
        assert len(np.unique(steps.round[part])) <= max(2 * busiest - 1, 1)


def test_a_circle_of_last_copies_needs_room_for_one_expert_only() -> None:
    turned = Placement([[[2, 3], [4, 5], [0, 1]]], 6)
    steps = schedule([[[0, 1], [2, 3], [4, 5]]], turned, staging=1)
    assert steps.staging == 1
    assert len(np.unique(steps.commit)) == 2
    assert (Placement(steps.run([[[0, 1], [2, 3], [4, 5]]]), 6).has == turned.has).all()


def test_what_nobody_holds_comes_from_storage() -> None:
    steps = schedule([[[0, EMPTY], [EMPTY, EMPTY]]], Placement([[[0, 1], [1, 2]]], 3))
    assert steps.source.tolist().count(STORAGE) == 3
    assert len(steps.moves) == 0


def test_experts_that_stay_keep_their_slots_and_nothing_else_changes() -> None:
    kept = keep_slots([[[3, 0, 1], [2, 4, EMPTY]]], Placement([[[0, 1, 2], [4, 3, EMPTY]]], 5))
    assert kept.experts.tolist() == [[[2, 0, 1], [EMPTY, 4, 3]]]


def test_swaps_of_a_pair_share_a_round() -> None:
    steps = schedule([[[0], [1]]], Placement([[[1], [0]]], 2))
    assert steps.rounds == 1


def test_what_cannot_be_executed_is_refused() -> None:
    with pytest.raises(InputError, match="what runs has shape"):
        schedule([[[0], [1]]], Placement([[[0, 1]]], 2))
    with pytest.raises(InputError, match="room to receive one expert"):
        schedule([[[0], [1]]], Placement([[[1], [0]]], 2), staging=0)

    def of(*moves: tuple[int, ...]) -> Schedule:
        return Schedule(*np.array(moves).T, layers=1, ranks=3, slots=2)

    running = [[[0, 1], [2, 3], [4, 5]]]
    with pytest.raises(InputError, match="rank 1 does not hold expert 0"):
        of((0, 0, 0, 0, 1, 2, 0)).run(running)
    with pytest.raises(InputError, match="expert 4 of layer 0 is nowhere"):
        of((0, 0, 0, 0, 0, 2, 0)).run(running)
    with pytest.raises(InputError, match="rank 0 meets ranks 1 and 2"):
        of((0, 0, 0, 0, 0, 1, 0), (0, 0, 0, 1, 0, 2, 0), (0, 1, 0, 2, 1, 0, 0), (0, 2, 0, 4, 2, 0, 1)).run(running)
