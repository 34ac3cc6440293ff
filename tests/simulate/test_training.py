"""Training steps, jitter, and what stands outside the MoE layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import InputError
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.costs.attention import exchange_s
from moesim.simulate import Training, simulate
from moesim.simulate.training import ATTENTION_BACKWARD, EXPERTS_BACKWARD, drop_beyond
from moesim.spec import ModelSpec

from . import worlds

seeds = st.integers(0, 2**32 - 1)
few = settings(deadline=None, max_examples=20)


@few
@given(seed=seeds, schedule=st.sampled_from(["sequential", "two-batch"]))
def test_a_training_step_is_longer_and_sends_gradients_both_ways(seed: int, schedule: str) -> None:
    world = worlds.world(seed)
    forward = simulate(world.batches, world.cluster, world.placement, schedule=schedule, transport="direct")
    step = simulate(
        world.batches, world.cluster, world.placement, schedule=schedule, transport="direct", training=Training()
    )
    assert (step.step_s > 2 * forward.step_s).all()
    np.testing.assert_array_equal(step.tokens, forward.tokens)
    spec = world.trace.spec
    there = spec.combine_token_bytes + 16
    # dispatch, combine, and their gradients in the dtype of combine, with headers on the way to experts
    pairs = forward.node_bytes / (spec.dispatch_token_bytes + 16 + spec.combine_token_bytes)
    if np.allclose(pairs, pairs.T):
        np.testing.assert_allclose(step.node_bytes, forward.node_bytes + pairs * (there + spec.combine_token_bytes))
    assert step.node_bytes.sum() > 1.9 * forward.node_bytes.sum()
    if schedule == "sequential":
        ratio = step.busy_s["experts"] / np.where(forward.busy_s["experts"] > 0, forward.busy_s["experts"], 1)
        busy = forward.busy_s["experts"] > 0
        np.testing.assert_allclose(ratio[busy], 1 + EXPERTS_BACKWARD.value)
    parts = step.all_to_all_s + step.compute_s + step.attention_s
    assert parts == pytest.approx(step.mean_step_s, rel=1e-9)


@few
@given(seed=seeds)
def test_engines_agree_on_training(seed: int) -> None:
    world = worlds.world(seed)
    reports = []
    for engine in ("events", "closed-form", "reference"):
        report = simulate(
            world.batches, world.cluster, world.placement, engine=engine, training=Training(1.0), jitter=0.1
        ).to_dict()
        report.pop("engine")
        reports.append(report)
    assert reports[0] == reports[1] == reports[2]


@few
@given(seed=seeds, factor=st.floats(0.2, 3.0), probs=st.booleans())
def test_no_expert_gets_more_than_its_capacity_and_nothing_else_is_lost(seed: int, factor: float, probs: bool) -> None:
    rng = np.random.default_rng(seed)
    n, L, K, E, R = 60, 2, 2, 6, 4
    routes = np.argsort(rng.gumbel(size=(n, L, E)) + np.arange(E), axis=-1)[..., :K].astype(np.int16)
    routes[rng.random(routes.shape) < 0.1] = -1
    home = rng.integers(0, R, n).astype(np.int32)
    weights = rng.random(routes.shape) if probs else None
    kept, dropped = drop_beyond(routes, home, E, R, factor, weights)
    assert ((kept == routes) | (kept == -1)).all()
    assert dropped == int((kept != routes).sum())
    for rank in range(R):
        mine = home == rank
        capacity = int(np.ceil(mine.sum() * K / E * factor))
        for layer in range(L):
            for expert in range(E):
                wanted = routes[mine, layer] == expert
                taken = kept[mine, layer] == expert
                assert taken.sum() == min(wanted.sum(), capacity)
                lost = wanted & ~taken
                if lost.any() and taken.any() and weights is None:
                    # the last tokens are dropped
                    assert np.flatnonzero(lost.any(axis=1)).min() > np.flatnonzero(taken.any(axis=1)).max()
                elif lost.any() and taken.any():
                    scores = weights[mine, layer]
                    assert scores[lost].max() <= scores[taken].min()


def test_a_capacity_beyond_all_integers_drops_nothing() -> None:
    routes = np.zeros((4, 1, 1), np.int16)
    kept, dropped = drop_beyond(routes, np.zeros(4, np.int32), 8, 2, 1e20)
    assert dropped == 0
    assert np.array_equal(kept, routes)


def test_capacity_bounds_the_busiest_rank_and_is_reported() -> None:
    world = worlds.world(3)
    whole = simulate(world.batches, world.cluster, world.placement, training=Training())
    tight = simulate(world.batches, world.cluster, world.placement, training=Training(0.5))
    assert whole.dropped == 0
    assert tight.dropped == int(whole.tokens.sum() - tight.tokens.sum())
    assert tight.dropped > 0
    assert tight.tokens.max() < whole.tokens.max()
    assert any("optimizer" in note for note in tight.notes)
    with pytest.raises(InputError, match="needs gate weights"):
        simulate(world.batches, world.cluster, world.placement, training=Training(1.0, drop="probs"))
    with pytest.raises(InputError, match="expected more than zero"):
        Training(0.0)
    with pytest.raises(InputError, match="expected 'probs' or 'position'"):
        Training(drop="random")  # type: ignore[arg-type]


def test_jitter_is_seeded_unbiased_and_makes_steps_longer() -> None:
    world = worlds.world(5, tokens_per_rank=24, steps=2)
    still = simulate(world.batches, world.cluster, world.placement)

    def noisy(seed: int) -> float:
        return simulate(world.batches, world.cluster, world.placement, jitter=0.3, seed=seed).mean_step_s

    assert noisy(1) == noisy(1) != noisy(2)
    # everybody waits for the slowest of each phase
    assert np.mean([noisy(seed) for seed in range(10)]) > still.mean_step_s
    with pytest.raises(InputError, match="from 0 to 1"):
        simulate(world.batches, world.cluster, world.placement, jitter=-0.1)


def test_the_whole_model_adds_dense_layers_and_the_head() -> None:
    world = worlds.world(6)
    report = simulate(world.batches, world.cluster, world.placement)
    assert report.model_step_s > report.mean_step_s  # one dense layer's attention
    spec = dataclasses.replace(world.trace.spec, dense_intermediate=4096, vocab=50_000)
    costs = Costs.default(spec, world.cluster)
    larger = simulate(world.batches, world.cluster, world.placement, costs=costs)
    assert larger.model_step_s > report.model_step_s
    assert larger.tokens_per_s_per_gpu * 4 * (larger.step_s + larger.outside_s).sum() == pytest.approx(
        larger.step_tokens.sum()
    )
    assert "output head of small is not known: not priced" in report.notes
    assert "output head of small is not known: not priced" not in larger.notes


def test_training_needs_the_output_head_for_every_token() -> None:
    world = worlds.world(6)
    batches, ranks = world.batches, world.cluster.ranks
    costs = Costs.default(dataclasses.replace(world.trace.spec, vocab=50_000), world.cluster)
    step = simulate(batches, world.cluster, world.placement, costs=costs, training=Training())
    home, position = batches.homes(0), batches.positions(0)
    tokens = np.bincount(home, minlength=ranks).astype(float)
    context = np.bincount(home, weights=position + 1.0, minlength=ranks)
    attention = costs.attention_s(tokens, context, False)
    every = costs.outside_s(attention, tokens, tokens).max() * (1 + ATTENTION_BACKWARD.value)
    assert step.outside_s[0] == pytest.approx(every)


def test_tensor_parallel_attention_shares_heads_and_pays_for_gathering() -> None:
    spec = ModelSpec.preset("qwen3-235b-a22b")
    cluster = worlds.cluster(1, 8)
    alone, shared = (Costs.default(spec, cluster, decode=True, attention_tp=tp) for tp in (1, 4))
    tokens = np.zeros(8)
    tokens[0] = 64.0
    context = tokens * 32_768
    # one rank's long contexts are read by four
    assert shared.attention_s(tokens, context, True).max() < 0.5 * alone.attention_s(tokens, context, True).max()
    # but an even load is no smaller shared, and pays two collectives
    even = np.full(8, 8192.0)
    assert shared.attention_s(even, even * 4096, False).max() > alone.attention_s(even, even * 4096, False).max()
    # MLA keeps the whole latent cache on every rank
    latent = ModelSpec.preset("deepseek-v3")
    one, four = (Costs.default(latent, cluster, decode=True, attention_tp=tp) for tp in (1, 4))
    even = np.full(8, 64.0)
    assert four.attention_s(even, even * 1e5, True).max() > one.attention_s(even, even * 1e5, True).max()
    # in a mesh every further rank of the group is a further link: less time where a switch takes more
    mesh = Cluster.preset("mi300x-4x8-rail").restrict(range(8))
    many = np.full(8, 8192.0)
    pair, all_eight = (exchange_s(many, mesh, spec, tp).max() for tp in (2, 8))
    assert all_eight < 0.5 * pair
    assert exchange_s(many, cluster, spec, 8).max() > exchange_s(many, cluster, spec, 2).max()
    with pytest.raises(InputError, match="does not divide the 8 ranks"):
        Costs.default(spec, cluster, attention_tp=3)
    assert shared.digest != alone.digest
