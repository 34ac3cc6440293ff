"""Laws of the Flow, over random placements with replicas and holes, uneven nodes and dropped picks."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import InputError, UnknownName
from moesim.placement import POLICIES, WANT, NotComputed, Placement, dispatch, dispatch_reference, nearest_table
from moesim.placement.policies import SharePolicy, TablePolicy, TokenPolicy

from .worlds import World, make_world, worlds

ARRAYS = ("slot_tokens", "pairs", "rank_copies", "node_copies", "forward_local")
policies = st.sampled_from(["uniform", "hash", "nearest", "random"])
WORLD = make_world(1, [3, 2, 1], layers=2, slots=3, experts=9, picks=4, tokens=30)


def same_node(node: np.ndarray) -> np.ndarray:
    return (node[:, None] == np.arange(node.max() + 1)).astype(float)


def test_a_batch_small_enough_to_count_by_hand() -> None:
    # two nodes of two ranks, one slot each; expert 0 is on rank 0, ..., expert 3 on rank 3
    placement = Placement([[[0], [1], [2], [3]]], 4)
    node, landing = np.array([0, 0, 1, 1]), np.array([[0, 2], [1, 3], [0, 2], [1, 3]])
    routes = np.array([[[0, 1]], [[2, 3]], [[3, -1]], [[1, 2]]], dtype=np.int16)
    flow = dispatch(routes, np.array([0, 0, 1, 3]), placement, node, landing)
    assert flow.tokens.tolist() == [2, 1, 0, 1]
    assert flow.slot_tokens[0].tolist() == [[1], [2], [2], [2]]
    assert flow.pairs[0].tolist() == [[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert np.array_equal(flow.rank_copies, flow.pairs)
    # rank 0's second token goes to node 1 once, although two of its experts are there
    assert flow.node_copies[0].tolist() == [[1, 1], [0, 1], [0, 0], [1, 1]]
    # it lands on rank 2, which keeps it and passes it to rank 3; rank 1's token lands on rank 3 itself
    assert flow.forward[0].tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


@given(worlds(), policies)
@settings(max_examples=150, deadline=None)
def test_conservation(world: World, policy: str) -> None:
    flow = dispatch(*world.arguments(), policy=policy)
    ranks, picked = len(world.node), world.routes >= 0
    layers = picked.transpose(1, 0, 2)
    by_home = np.zeros((len(layers), ranks))
    np.add.at(by_home, (slice(None), world.home), layers.sum(axis=2))
    nodes = same_node(world.node)

    # tokens in = tokens out: every pick is computed once, on behalf of its home rank
    assert np.allclose(flow.slot_tokens.sum(axis=(1, 2)), layers.sum(axis=(1, 2)))
    assert np.allclose(flow.pairs.sum(axis=2), by_home)
    assert np.allclose(flow.pairs.sum(axis=1), flow.slot_tokens.sum(axis=2))
    assert flow.tokens.sum() == len(world.home)
    # merging never adds, and never loses a token
    assert (flow.pairs >= flow.rank_copies - 1e-9).all()
    assert (flow.rank_copies @ nodes >= flow.node_copies - 1e-9).all()
    assert ((flow.rank_copies > 0) == (flow.pairs > 0)).all()
    assert (flow.node_copies <= flow.tokens[:, None] + 1e-9).all()
    # a token reaches each expert rank once, whoever hands it over, and stays inside the node
    assert np.allclose(flow.forward.sum(axis=1), flow.rank_copies.sum(axis=1))
    assert (flow.forward[:, nodes @ nodes.T == 0] == 0).all()
    # nothing is computed in an empty slot
    assert (flow.slot_tokens[world.placement.experts < 0] == 0).all()


@given(worlds(), policies, st.integers(0, 3))
@settings(max_examples=120, deadline=None)
def test_compiled_equals_plain_numpy(world: World, policy: str, seed: int) -> None:
    fast = dispatch(*world.arguments(), policy=policy, seed=seed)
    slow = dispatch_reference(*world.arguments(), policy=policy, seed=seed)
    for name in (*ARRAYS, "forward", "tokens"):
        if policy == "uniform":
            assert np.allclose(getattr(fast, name), getattr(slow, name), rtol=1e-12, atol=1e-12), name
        else:
            assert np.array_equal(getattr(fast, name), getattr(slow, name)), name


@given(worlds(), policies, st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_relabelling_ranks_inside_a_node_permutes_the_flow(world: World, policy: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    new = np.arange(len(world.node))  # new number of each rank
    for place in np.unique(world.node):
        members = np.flatnonzero(world.node == place)
        new[members] = rng.permutation(members)
    old = np.argsort(new)
    slots = world.placement.slots_per_rank
    placement = Placement(world.placement.experts[:, old], world.placement.num_experts)
    moved = World(world.routes, new[world.home], placement, world.node, new[world.landing[old]])
    if policy == "uniform":
        before, after = (dispatch(*w.arguments(), policy=policy) for w in (world, moved))
    else:
        # which of equally near copies is used follows the numbering, so the table is relabelled too
        table = nearest_table(world.placement, world.node)
        relabelled = (new[table // slots] * slots + table % slots)[:, old]
        before = dispatch(*world.arguments(), table=table)
        after = dispatch(*moved.arguments(), table=relabelled)
    assert np.allclose(after.slot_tokens, before.slot_tokens[:, old])
    assert np.allclose(after.node_copies, before.node_copies[:, old])
    for name in ("pairs", "rank_copies", "forward"):
        assert np.allclose(getattr(after, name), getattr(before, name)[:, old][:, :, old]), name


@given(worlds(), policies)
@settings(max_examples=60, deadline=None)
def test_batches_add_up_and_layers_stand_alone(world: World, policy: str) -> None:
    whole = dispatch(*world.arguments(), policy=policy)
    for layer in range(world.placement.layers):
        alone = dispatch(*world.arguments(), policy=policy, layers=[layer])
        assert np.array_equal(alone.forward[0], whole.forward[layer])
        assert np.array_equal(alone.slot_tokens[0], whole.slot_tokens[layer])
    if policy in ("uniform", "nearest"):  # the others look at the row in the batch
        half = len(world.home) // 2
        parts = [
            dispatch(world.routes[cut], world.home[cut], *world.arguments()[2:], policy=policy)
            for cut in (slice(None, half), slice(half, None))
        ]
        for name in ARRAYS:
            assert np.allclose(sum(getattr(p, name) for p in parts), getattr(whole, name)), name


@pytest.mark.parametrize("name", ARRAYS)
def test_uniform_is_the_mean_of_sampled_choices(name: str) -> None:
    samples = 400
    drawn = np.stack([getattr(dispatch(*WORLD.arguments(), policy="random", seed=s), name) for s in range(samples)])
    error = np.abs(drawn.mean(axis=0) - getattr(dispatch(*WORLD.arguments(), policy="uniform"), name))
    # five standard errors, and a draw in a thousand for cells that never varied
    assert (error <= 5 * drawn.std(axis=0) / np.sqrt(samples) + 1e-3).all()
    assert drawn.std(axis=0).max() > 0


def test_only_wanted_arrays_are_held() -> None:
    full = dispatch(*WORLD.arguments())
    flow = dispatch(*WORLD.arguments(), want=("node_copies", "forward"))
    assert np.array_equal(flow.node_copies, full.node_copies)
    assert np.array_equal(flow.forward, full.forward)
    assert getattr(flow, "pairs", None) is None
    with pytest.raises(NotComputed, match=r"holds no rank_copies: ask for it with dispatch\(..., want="):
        _ = flow.rank_copies
    assert "node_copies, forward_local" in repr(pickle.loads(pickle.dumps(flow)))
    with pytest.raises(UnknownName, match="did you mean 'pairs'"):
        dispatch(*WORLD.arguments(), want=("pair",))
    assert all(hasattr(full, name) for name in WANT)


def test_large_groups_go_layer_by_layer_without_square_arrays() -> None:
    ranks = 1024
    node = (np.arange(ranks) // 8).astype(np.int32)
    landing = (np.arange(128) * 8 + np.arange(ranks)[:, None] % 8).astype(np.int32)
    placement = Placement((np.arange(ranks) % 256).reshape(1, ranks, 1), 256)
    rng = np.random.default_rng(0)
    routes = rng.integers(0, 256, (4096, 1, 8)).astype(np.int16)
    home = np.arange(4096) % ranks
    flow = dispatch(routes, home, placement, node, landing, layers=0, want=("slot_tokens", "node_copies", "forward"))
    assert flow.slot_tokens.sum() == routes.size
    assert flow.forward_local.shape == (1, ranks, 8)
    assert flow.forward_local.sum() <= routes.size


class TestRefusals:
    def check(self, message: str, **changes: object) -> None:
        names = ("routes", "home", "placement", "node", "landing")
        values = {name: changes.pop(name, getattr(WORLD, name)) for name in names}
        with pytest.raises(InputError, match=message):
            dispatch(*values.values(), **changes)

    def test_shapes_and_ranges(self) -> None:
        self.check("expected routes .tokens, 2 layers, picks.", routes=WORLD.routes[:, :1])
        self.check("one home rank for each of 30 tokens", home=WORLD.home[:-1])
        self.check("home: expected values in 0..5, got 6", home=WORLD.home * 0 + 6)
        self.check("routes: expected values in -1..8, got 9", routes=WORLD.routes * 0 + 9)
        self.check("routes: expected integers, got float64", routes=WORLD.routes.astype(float))
        self.check("placement has 6 ranks, but cluster_node has shape", node=WORLD.node[:-1])
        self.check("landing: traffic of rank 0 for node", landing=np.zeros((6, 3), dtype=int) + 5)
        self.check("layers: expected numbers in 0..1, got 2", layers=[0, 2])
        self.check("layers: expected whole numbers in 0..1, got bool", layers=np.array([True, False]))
        self.check("layers: expected whole numbers in 0..1, got float64", layers=[0.5])
        self.check("did you mean 'nearest'", policy="nearst")

    def test_a_table_of_another_placement(self) -> None:
        table = nearest_table(WORLD.placement, WORLD.node)
        self.check("which does not hold it; make the table from this placement", table=np.roll(table, 1, axis=2))
        self.check("table: expected shape", table=table[:1])
        self.check("uses no table", table=table, policy="hash")
        self.check("expected integers, got float64", table=table.astype(float))

    def test_policies_that_break_their_promise(self) -> None:
        def lost(batch):
            return np.full(batch.routes.shape, -1, dtype=np.int32)

        def half(batch):
            return np.full((1, len(batch.slot)), 0.5), np.zeros(len(batch.node), dtype=int)

        def zeros(placement, node, layers):
            return np.zeros((len(layers), placement.ranks, placement.num_experts), dtype=np.int32)

        # a plug-in that forgot the wrapper: nobody would fill the arrays
        self.check("is function; expected a TablePolicy, SharePolicy or TokenPolicy", policy=lost)
        self.check("the policy sends them to slots", policy=TokenPolicy("nobody", lost))
        self.check("add up to .*expected 1, none of them negative", policy=SharePolicy("nobody", half))
        self.check("does not hold it", policy=TablePolicy("nobody", zeros))


def test_every_policy_says_who_runs_it() -> None:
    assert POLICIES.names()[:4] == ["uniform", "hash", "nearest", "random"]
    assert all(POLICIES.get(name).engine for name in POLICIES.names())


def test_shares_by_source_follow_the_source() -> None:
    # expert 0 has a copy on either rank; each home rank sends three quarters to itself
    placement = Placement([[[0], [0]]], 1)

    def mostly_mine(batch):
        return np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 1])

    node, landing = np.array([0, 1]), np.array([[0, 1], [0, 1]])
    flow = dispatch(
        np.zeros((4, 1, 1), dtype=np.int16), np.array([0, 0, 0, 1]), placement, node, landing,
        policy=SharePolicy("nobody", mostly_mine),
    )  # fmt: skip
    assert flow.pairs[0].tolist() == [[2.25, 0.75], [0.25, 0.75]]
    assert flow.slot_tokens[0, :, 0].tolist() == [2.5, 1.5]
