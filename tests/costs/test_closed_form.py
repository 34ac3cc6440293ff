"""Clocks of a layer in max-plus form: sums where all is balanced, delays that reach only who waits."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.arrays import Array
from moesim.cluster import Cluster
from moesim.costs import Costs, Timing, layer_clocks, received, step_clocks, step_time
from moesim.placement import Flow

from .worlds import SPEC, batches, cluster, random_flow, scaled

ALMOST = 1 - 1e-12


def parts(where: Cluster, flow: Flow, transport: str = "hierarchical") -> tuple[Array, Timing, Array, Timing, Array]:
    costs = Costs.default(SPEC, where, transport)
    attention = costs.attention_s(flow.tokens, flow.tokens * 100.0, False)
    return attention, costs.dispatch(flow), costs.experts_s(flow.slot_tokens), costs.combine(flow), attention / 3


def by_hand(ready: Array, timing: Timing, layer: int) -> Array:
    """The formula of the docstring, term by term."""
    arrive, own, senders = timing.arrive_s[layer], timing.own_s[layer], timing.senders[layer]
    out = []
    for d in range(len(ready)):
        terms = [ready.min() + arrive[d], ready[d]]
        for s in range(len(ready)):
            if timing.everyone:
                terms.append(ready[s] + min(timing.floor_s[layer], arrive[d]))
            if senders[s, d]:
                terms.append(ready[s] + min(own[s] + timing.drain_s[layer], arrive[d]))
                bytes_s = (own + timing.drain_s[layer] - timing.floor_s[layer]) * senders[:, d]
                if not bytes_s.any() or arrive[d] <= timing.floor_s[layer]:
                    continue
                rest = bytes_s[ready >= ready[s]].sum() / bytes_s.sum()
                terms.append(ready[s] + timing.floor_s[layer] + rest * (arrive[d] - timing.floor_s[layer]))
        out.append(max(terms))
    return np.array(out)


@settings(deadline=None, max_examples=50)
@given(batches(), st.sampled_from(["direct", "hierarchical", "allgather"]), st.integers(0, 2**32 - 1))
def test_received_is_its_formula(world: tuple[Cluster, Flow], transport: str, seed: int):
    where, flow = world
    dispatch = parts(where, flow, transport)[1]
    for timing in (dispatch, dataclasses.replace(dispatch, everyone=False)):
        for scale in (0.0, 1e-6, 1e-3):
            ready = np.random.default_rng(seed).random(where.ranks) * scale
            np.testing.assert_allclose(received(ready, timing, 1), by_hand(ready, timing, 1), rtol=1e-12)


@settings(deadline=None, max_examples=30)
@given(batches(), st.floats(0, 1))
def test_equal_starts_give_exactly_the_arrival(world: tuple[Cluster, Flow], start: float):
    where, flow = world
    dispatch = parts(where, flow)[1]
    ready = np.full(where.ranks, start)
    np.testing.assert_array_equal(received(ready, dispatch, 0), start + dispatch.arrive_s[0])


@settings(deadline=None, max_examples=30)
@given(batches(), st.booleans())
def test_a_step_takes_at_least_each_of_its_parts_and_at_most_all_barriers(world: tuple[Cluster, Flow], overlap: bool):
    where, flow = world
    attention, dispatch, experts, combine, shared = parts(where, flow)
    total = step_time(attention, dispatch, experts, combine, shared, overlap=overlap)
    layers = len(experts)
    assert total >= layers * attention.max() * ALMOST
    assert total >= experts.max(axis=1).sum() * ALMOST
    assert total >= (dispatch.makespan_s + combine.makespan_s).sum() * ALMOST
    sums = dispatch.makespan_s + combine.makespan_s + experts.max(axis=1) + attention.max() + shared.max()
    assert total * ALMOST <= sums.sum()


def test_where_all_is_balanced_a_step_is_the_sum_of_its_parts():
    where = cluster(2, 4)
    flow = random_flow(where, SPEC, tokens=64)
    _, dispatch, _, combine, _ = parts(where, flow)
    even = np.full(8, 1e-4)
    flat = dataclasses.replace(dispatch, arrive_s=np.full((1, 8), 3e-4), own_s=np.full((1, 8), 2e-4))
    back = dataclasses.replace(combine, arrive_s=np.full((1, 8), 5e-4), own_s=np.full((1, 8), 2e-4))
    clocks = layer_clocks(np.zeros(8), even, flat, even * 2, back, even * 3)
    np.testing.assert_allclose(clocks.home, 1e-4 + 3e-4 + 3e-4 + 2e-4 + 5e-4)
    beside = layer_clocks(np.zeros(8), even, flat, even * 2, back, even * 3, overlap=True)
    np.testing.assert_allclose(beside.home, 1e-4 + 3e-4 + 2e-4 + 5e-4)
    long = layer_clocks(np.zeros(8), even, flat, even * 2, back, even * 300, overlap=True)
    np.testing.assert_allclose(long.home, 1e-4 + 3e-2)


def test_a_late_sender_delays_who_waits_for_it():
    where = cluster(1, 4)
    flow = random_flow(where, SPEC, tokens=8)
    dispatch = parts(where, flow, "rank-dedup")[1]
    only_own = np.eye(4, dtype=bool)[None]
    only_own[0, 3, 0] = True
    quiet = dataclasses.replace(dispatch, senders=only_own, everyone=False)
    ready = np.array([0.0, 0.0, 0.0, 1.0])
    arrived = received(ready, quiet, 0)
    assert arrived[0] == pytest.approx(1.0 + min(quiet.own_s[0, 3], quiet.arrive_s[0, 0]))
    np.testing.assert_array_equal(arrived[1:3], quiet.arrive_s[0, 1:3])
    # libraries that exchange counts make everybody wait for the last word
    assert (received(ready, dispatch, 0) >= 1.0).all()


@settings(deadline=None, max_examples=30)
@given(batches(), st.floats(1.0, 10.0), st.integers(0, 7))
def test_more_bandwidth_and_less_work_never_slow_a_step(world: tuple[Cluster, Flow], factor: float, rank: int):
    where, flow = world
    attention, dispatch, experts, combine, shared = parts(where, flow)
    plain = step_time(attention, dispatch, experts, combine, shared)
    wide = parts(scaled(where, factor), flow)
    assert step_time(attention, wide[1], experts, wide[3], shared) * ALMOST <= plain
    slower = experts.copy()
    slower[0, rank % where.ranks] += 1e-3
    assert step_time(attention, dispatch, slower, combine, shared) >= plain


def test_clocks_carry_over_layers_and_starts():
    where = cluster(2, 2)
    flow = random_flow(where, SPEC, tokens=16, layers=2)
    attention, dispatch, experts, combine, shared = parts(where, flow)
    first = layer_clocks(np.zeros(4), attention, dispatch, experts[0], combine, shared, layer=0)
    second = layer_clocks(first.home, attention, dispatch, experts[1], combine, shared, layer=1)
    np.testing.assert_array_equal(step_clocks(attention, dispatch, experts, combine, shared), second.home)
    later = step_clocks(attention, dispatch, experts, combine, shared, start=np.full(4, 2.0))
    np.testing.assert_allclose(later, second.home + 2.0)
    for earlier, after in pairwise(second):
        assert (earlier <= after).all()


@pytest.mark.parametrize("everyone", [True, False])
def test_a_rank_that_is_ready_early_does_not_bring_home_what_others_still_compute(everyone: bool):
    ranks, floor, load = 8, 1e-5, 4e-4
    exchange = Timing(
        arrive_s=np.full((1, ranks), floor + load), own_s=np.full((1, ranks), floor + load / 2),
        link_bytes=np.zeros((1, 1)), link_time_s=np.zeros((1, 1)), binding=np.zeros(1, np.int64),
        floor_s=np.full(1, floor), drain_s=np.zeros(1), senders=~np.eye(ranks, dtype=bool)[None], everyone=everyone,
    )  # fmt: skip
    together = received(np.full(ranks, 1e-3), exchange, 0)
    ready = np.where(np.arange(ranks) == 0, 0.0, 1e-3)
    # of seven senders six are late; rank 0 hears of late ones only
    np.testing.assert_allclose(received(ready, exchange, 0)[1:], 1e-3 + floor + load * 6 / 7)
    np.testing.assert_allclose(received(ready, exchange, 0)[0], together[0])
