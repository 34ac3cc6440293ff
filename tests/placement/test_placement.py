"""A placement is one array; whatever breaks a serving engine cannot be built."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import InputError
from moesim.placement import EMPTY, Placement, fill_empty, migration
from moesim.spec import ModelSpec

from .worlds import World, random_placement, worlds

TWO_RANKS = Placement([[[0, 1], [2, 0]], [[2, 1], [0, EMPTY]]], num_experts=3)


def test_derived_facts_of_a_small_placement() -> None:
    assert (TWO_RANKS.layers, TWO_RANKS.ranks, TWO_RANKS.slots_per_rank) == (2, 2, 2)
    assert TWO_RANKS.replicas.tolist() == [[2, 1, 1], [1, 1, 1]]
    assert TWO_RANKS.physical_to_logical.tolist() == [[0, 1, 2, 0], [2, 1, 0, EMPTY]]
    assert TWO_RANKS.empty_slots == 1
    assert TWO_RANKS.has[0].tolist() == [[True, True], [True, False], [False, True]]
    indptr, rank, slot = TWO_RANKS.holders(0)
    assert (indptr.tolist(), rank.tolist(), slot.tolist()) == ([0, 2, 3, 4], [0, 1, 0, 1], [0, 1, 1, 0])


@pytest.mark.parametrize(
    ("experts", "number", "message"),
    [
        ([[[0, 3], [1, 2]]], 3, "layer 0, rank 0, slot 1 holds expert 3; expected 0..2"),
        ([[[0, -2], [1, 2]]], 3, "layer 0, rank 0, slot 1 holds expert -2"),
        ([[[0, 1], [1, 0]]], 3, "expert 2 of layer 0 is on no rank; place every expert"),
        ([[[0, 1], [1, 2]], [[1, 1], [0, 2]]], 3, "expert 1 is twice on rank 0 in layer 1"),
        ([[[0], [1]]], 3, "2 ranks of 1 slot cannot hold 3 experts; give at least 2 slots a rank"),
        ([[0, 1]], 2, r"expected axes \[layers, ranks, slots\], got shape \(1, 2\)"),
        # refused before copies are counted, which would take gigabytes
        ([[[0], [2**31 - 2]]], 2**31 - 1, "2 ranks of 1 slot cannot hold 2,147,483,647 experts"),
        (np.zeros((0, 2, 2)), 2, "expected at least one expert, layer, rank and slot"),
        ([[[0.5], [1]]], 2, "values do not fit int32"),
    ],
)
def test_an_invalid_placement_cannot_be_built(experts: object, number: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Placement(experts, number)


def test_arrays_are_read_only_also_after_pickling() -> None:
    for placement in (TWO_RANKS, pickle.loads(pickle.dumps(TWO_RANKS))):
        with pytest.raises(ValueError, match="read-only"):
            placement.experts[0, 0, 0] = 1
        assert placement == TWO_RANKS
        assert hash(placement) == hash(TWO_RANKS)


def test_the_callers_array_stays_the_callers() -> None:
    mine = np.array([[[0, 1], [2, 0]]], dtype=np.int32)
    placement = Placement(mine, 3)
    mine[0, 0, 0] = 2
    assert placement.experts[0, 0, 0] == 0


def test_equality_counts_every_fact() -> None:
    numbered = Placement(TWO_RANKS.experts, 3, layer_ids=(1, 2), num_hidden_layers=4)
    assert numbered != TWO_RANKS
    assert Placement([[[0, 1], [2, 1]]], 3) != Placement([[[0, 1], [2, 0]]], 3)
    assert TWO_RANKS != "a placement"


def test_layer_numbers_come_from_the_model() -> None:
    spec = ModelSpec("tiny", (1, 2), 3, experts=3, top_k=1, hidden=8, intermediate=8)
    assert TWO_RANKS.for_model(spec).layer_ids == (1, 2)
    with pytest.raises(InputError, match="2 layers of 3 experts, but model 'mixtral-8x7b' has 32 MoE layers of 8"):
        TWO_RANKS.for_model(ModelSpec.preset("mixtral-8x7b"))
    with pytest.raises(InputError, match="expected 2 ascending decoder indices"):
        Placement(TWO_RANKS.experts, 3, layer_ids=(2, 1), num_hidden_layers=4)
    with pytest.raises(InputError, match="together, or neither"):
        Placement(TWO_RANKS.experts, 3, layer_ids=(1, 2))


def test_an_engine_map_needs_equal_slots() -> None:
    assert Placement.from_physical([[0, 1, 2, 0]], ranks=2, num_experts=3).experts.tolist() == [[[0, 1], [2, 0]]]
    with pytest.raises(InputError, match="slots divisible by 3 ranks"):
        Placement.from_physical([[0, 1, 2, 0]], ranks=3, num_experts=3)


@given(worlds())
@settings(max_examples=50, deadline=None)
def test_every_view_tells_the_same_placement(world: World) -> None:
    placement = world.placement
    assert np.array_equal(placement.has.sum(axis=2), placement.replicas)
    assert placement.replicas.sum() + placement.empty_slots == placement.experts.size
    for layer in range(placement.layers):
        indptr, rank, slot = placement.holders(layer)
        expert = np.repeat(np.arange(placement.num_experts), np.diff(indptr))
        assert np.array_equal(placement.experts[layer, rank, slot], expert)
        assert all(np.all(np.diff(rank[a:b]) > 0) for a, b in itertools.pairwise(indptr))


class TestFillEmpty:
    @given(worlds(), st.integers(0, 2**32 - 1))
    @settings(max_examples=60, deadline=None)
    def test_fills_every_slot_and_moves_nothing(self, world: World, seed: int) -> None:
        placement = world.placement
        loads = np.random.default_rng(seed).integers(0, 5, (placement.layers, placement.num_experts))
        if placement.slots_per_rank > placement.num_experts:
            with pytest.raises(InputError, match="give fewer slots"):
                fill_empty(placement, loads)
            return
        full = fill_empty(placement, loads)
        assert full.empty_slots == 0
        kept = placement.experts != EMPTY
        assert np.array_equal(full.experts[kept], placement.experts[kept])
        assert fill_empty(full, loads) == full

    def test_the_most_loaded_expert_gets_the_copy_on_the_least_loaded_rank(self) -> None:
        placement = Placement([[[0, EMPTY], [1, 2], [3, EMPTY]]], 4)
        full = fill_empty(placement, [[1.0, 8.0, 1.0, 2.0]])
        # expert 1 goes to ranks 0 and 2: 8/1, then 8/2, are the largest loads per copy
        assert full.experts.tolist() == [[[0, 1], [1, 2], [3, 1]]]

    def test_bad_loads_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"expected loads \(2, 3\)"):
            fill_empty(TWO_RANKS, np.ones((1, 3)))
        with pytest.raises(InputError, match="finite loads"):
            fill_empty(TWO_RANKS, np.full((2, 3), np.nan))


class TestMigration:
    def test_moves_of_a_small_change(self) -> None:
        old = Placement([[[0], [1], [0], [2]]], 3)
        new = Placement([[[1], [0], [0], [2]]], 3)
        moves = migration(old, new, node=[0, 0, 1, 1])
        assert list(zip(moves.expert, moves.source, moves.target, strict=True)) == [(0, 0, 1), (1, 1, 0)]
        assert moves.per_layer.tolist() == [2]
        assert moves.received.tolist() == [[1, 1, 0, 0]]
        assert moves.bytes(10.0) == 20.0
        assert moves.between_nodes([0, 0, 1, 1]) == 0

    def test_changing_slots_on_one_rank_is_free(self) -> None:
        assert len(migration(Placement([[[0, 1], [2, 0]]], 3), Placement([[[1, 0], [0, 2]]], 3))) == 0

    def test_placements_of_different_clusters_are_refused(self) -> None:
        with pytest.raises(InputError, match="plan for what is running"):
            migration(TWO_RANKS, Placement([[[0, 1, 2]], [[0, 1, 2]]], 3))

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=50, deadline=None)
    def test_applying_the_moves_gives_the_new_holders(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        node = rng.integers(0, 3, 6)
        old, new = (random_placement(rng, 2, 6, 3, 8) for _ in range(2))
        moves = migration(old, new, node)
        assert old.has[moves.layer, moves.expert, moves.source].all()
        after = old.has & new.has
        after[moves.layer, moves.expert, moves.target] = True
        assert np.array_equal(after, new.has)
        assert np.array_equal(moves.received.sum(axis=1), moves.per_layer)
        assert np.array_equal(moves.sent.sum(axis=1), moves.per_layer)
