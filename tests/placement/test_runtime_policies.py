"""Policies that follow an engine or decide batch by batch, against their definitions, written out slowly."""

from __future__ import annotations

import dataclasses
import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.placement import Placement, dispatch, table_of
from moesim.placement.policies import NEEDS_SUPPORT, POLICIES

from .worlds import World, random_landing, random_routes, worlds


def sglang_slowly(placement: Placement, node: np.ndarray) -> np.ndarray:
    """What SGLang's loader does, with Python's own generator."""
    slots, ranks, experts = placement.slots_per_rank, placement.ranks, placement.num_experts
    out = np.empty((placement.layers, ranks, experts), int)
    ordinal = {decoder: number for number, decoder in enumerate(placement.layer_ids)}
    for mine in range(ranks):
        draw = random.Random(42)
        for decoder in range(placement.num_hidden_layers):
            moe = ordinal.get(decoder)
            flat = np.arange(ranks * slots) % experts if moe is None else placement.physical_to_logical[moe]
            for expert in range(experts):
                copies = np.flatnonzero(flat == expert).tolist()

                def near(rank: int, copies: list[int] = copies) -> int:
                    own = [copy for copy in copies if copy // slots == rank]
                    here = [copy for copy in copies if node[copy // slots] == node[rank]]
                    if len(copies) == 1 or own:
                        return (own or copies)[0]
                    return here[0] if 0 < len(here) < len(copies) else -1

                chosen = near(mine)
                if chosen < 0:
                    left = [rank for rank in range(ranks) if near(rank) < 0]
                    whole, rest = divmod(len(left), len(copies))
                    choices = copies * whole + draw.sample(copies, k=rest)
                    draw.shuffle(choices)
                    chosen = choices[left.index(mine)]
                if moe is not None:
                    out[moe, mine, expert] = chosen
    return out


@given(worlds(), st.integers(0, 3), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_sglang_is_sglangs_static_table_to_the_entry(world: World, dense: int, seed: int) -> None:
    placement, hidden = world.placement, world.placement.layers + dense
    ids = tuple(sorted(np.random.default_rng(seed).choice(hidden, placement.layers, replace=False).tolist()))
    placement = dataclasses.replace(placement, layer_ids=ids, num_hidden_layers=hidden)
    assert np.array_equal(table_of("sglang", placement, world.node), sglang_slowly(placement, world.node))


def test_sglang_draws_as_python_does_for_many_ranks_and_copies() -> None:
    # one node, so every rank without a copy of its own draws: sets of 22 and more are sampled another way
    held = np.stack([np.arange(48) < copies for copies in (2, 3, 7, 23, 30, 47)], axis=1)
    placement = Placement(np.where(held, np.arange(6), -1)[None], 6, layer_ids=(1,), num_hidden_layers=2)
    node = np.zeros(48, int)
    assert np.array_equal(table_of("sglang", placement, node), sglang_slowly(placement, node))


@given(worlds())
@settings(max_examples=40, deadline=None)
def test_batch_lp_is_as_balanced_as_the_copies_of_a_batch_allow(world: World) -> None:
    placement = world.placement
    flow = dispatch(*world.arguments(), policy="batch-lp", layers=[0])
    counts = np.bincount(world.routes[:, 0][world.routes[:, 0] >= 0], minlength=placement.num_experts)
    active = np.flatnonzero(counts)[:8]  # subsets of all would be too many; of some they bound from below
    least = max(
        (
            counts[list(some)].sum() / placement.has[0, list(some)].any(axis=0).sum()
            for size in range(1, len(active) + 1)
            for some in itertools.combinations(active, size)
        ),
        default=0.0,
    )
    fullest = flow.slot_tokens[0].sum(axis=1).max(initial=0.0)
    assert fullest >= least - 1e-6
    if len(active) == np.count_nonzero(counts):
        assert fullest == pytest.approx(least, abs=1e-6)


@given(worlds())
@settings(max_examples=60, deadline=None)
def test_fewest_active_uses_one_copy_an_expert_and_no_choice_has_fewer_active_on_its_fullest_rank(world: World) -> None:
    flow = dispatch(*world.arguments(), policy="fewest-active")
    for layer in range(world.placement.layers):
        experts, tokens = world.placement.experts[layer], flow.slot_tokens[layer]
        served = [int((tokens[experts == expert] > 0).sum()) for expert in range(world.placement.num_experts)]
        assert max(served, default=0) <= 1
        picked = [expert for expert, count in enumerate(served) if count]
        holders = [np.flatnonzero(world.placement.has[layer, expert]) for expert in picked]
        if np.prod([len(some) for some in holders]) > 20_000:
            continue
        least = min(
            (np.bincount(choice, minlength=1).max() for choice in itertools.product(*holders) if choice), default=0
        )
        assert (tokens > 0).sum(axis=1).max() == least


def test_fewest_active_halves_the_weight_reads_of_copies_and_uniform_does_not() -> None:
    rng = np.random.default_rng(0)
    placement = Placement([[[0, 1], [0, 1], [2, 3], [2, 3]]], 4)
    node = np.array([0, 0, 1, 1])
    routes = random_routes(rng, 200, 1, 4, 2, 0.0)
    given_ = (routes, rng.integers(0, 4, 200), placement, node, random_landing(rng, node))
    active = {name: (dispatch(*given_, policy=name).slot_tokens > 0).sum() for name in ("fewest-active", "uniform")}
    assert active == {"fewest-active": 4, "uniform": 8}


def test_every_policy_says_who_runs_it() -> None:
    engines = {name: POLICIES.get(name).engine for name in POLICIES.names()}
    assert {name for name, engine in engines.items() if engine == NEEDS_SUPPORT} == {
        "shares", "token-aware", "fewest-active",
    }  # fmt: skip
    assert all(name in "".join(engines.values()) for name in ("SGLang", "vLLM"))
