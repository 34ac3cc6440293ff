"""Network models: exact where one link binds, bounded by each other, and equal to a brute-force fluid."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.arrays import Array
from moesim.cluster import Cluster
from moesim.costs import NETWORKS, TRANSPORTS, Timing, Transfer
from moesim.costs.networks.maxmin import fill
from moesim.costs.types import DIRECTIONS
from moesim.placement import Flow
from moesim.spec import ModelSpec

from .worlds import SPEC, batches, cluster, preset, random_flow, scaled, traffics, transfer_of

ALMOST = 1 + 1e-9


def brute_force(volume: Array, start: Array, link: Array, share: Array, capacity: Array) -> Array:
    """Fluid fair sharing the slow way: raise all rates in small exact steps of water filling, restart at each end."""
    flows = [{int(k): float(s) for k, s in zip(link[a:b], share[a:b], strict=True)} for a, b in pairwise(start)]
    left = {f: float(v) for f, v in enumerate(volume)}
    ends, now = np.zeros(len(flows)), 0.0
    while left:
        rate: dict[int, float] = {}
        while len(rate) < len(left):
            growth = {}
            for k in range(len(capacity)):
                free = [f for f in left if f not in rate and k in flows[f]]
                if free:
                    used = sum(rate[f] * flows[f].get(k, 0.0) for f in rate)
                    growth[k] = (capacity[k] - used) / sum(flows[f][k] for f in free)
            full = min(growth, key=growth.__getitem__)
            for f in left:
                if f not in rate and full in flows[f]:
                    rate[f] = growth[full]
        step = min(left[f] / rate[f] for f in left)
        now += step
        left = {f: v - rate[f] * step for f, v in left.items()}
        for f in [f for f, v in left.items() if v <= 1e-9 * volume[f]]:
            ends[f] = now
            del left[f]
    return ends


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 6))
def test_filling_equals_brute_force(seed: int, flows: int, links: int):
    rng = np.random.default_rng(seed)
    crossed = [rng.choice(links, rng.integers(1, links + 1), replace=False) for _ in range(flows)]
    start = np.concatenate([[0], np.cumsum([len(c) for c in crossed])])
    link = np.concatenate(crossed).astype(np.int64)
    share, capacity = rng.choice([1.0, 0.5, 0.25], len(link)), rng.integers(1, 20, links).astype(float)
    volume = rng.integers(1, 50, flows).astype(float)
    expected = brute_force(volume, start, link, share, capacity)
    np.testing.assert_allclose(fill(volume, start, link, share, capacity), expected, rtol=1e-6)


def test_two_flows_share_a_link_and_the_longer_gets_the_rest():
    # 10 and 30 bytes over one link of 2 bytes/s: 1 byte/s each until 10 s, then 2 bytes/s for the other
    ends = fill(np.array([10.0, 30.0]), np.array([0, 1, 2]), np.zeros(2, np.int64), np.ones(2), np.array([2.0]))
    assert ends.tolist() == [10.0, 20.0]


def test_a_flow_that_nothing_limits_is_there_at_once():
    # of three flows one crosses no link, one only a link without a limit
    ends = fill(
        np.array([10.0, 30.0, 6.0]), np.array([0, 1, 1, 2]), np.array([0, 1]), np.ones(2), np.array([2.0, np.inf])
    )
    assert ends.tolist() == [5.0, 0.0, 0.0]


@settings(deadline=None, max_examples=60)
@given(traffics())
def test_link_load_bounds_fair_sharing(world: tuple[Cluster, Array]):
    where, bytes_ = world
    bound, fluid = (NETWORKS.get(name)(transfer_of(bytes_), where) for name in ("bottleneck", "max-min"))
    assert (bound.makespan_s <= fluid.makespan_s * ALMOST).all()
    np.testing.assert_allclose(bound.link_bytes, fluid.link_bytes, rtol=1e-12)
    # only what is sent arrives
    receives = bytes_.sum(axis=0) > 0
    assert (bound.arrive_s[0][receives] > bound.floor_s[0]).all()
    assert (bound.arrive_s[0][~receives] == bound.floor_s[0]).all()


@settings(deadline=None, max_examples=30)
@given(batches())
def test_the_bound_holds_for_every_transport(world: tuple[Cluster, Flow]):
    where, flow = world
    for name in ("direct", "rank-dedup", "hierarchical", "allgather"):
        for direction in DIRECTIONS:
            transfer = TRANSPORTS.get(name)(flow, where, SPEC, direction)
            bound, fluid = (NETWORKS.get(n)(transfer, where) for n in NETWORKS.names())
            assert (bound.makespan_s <= fluid.makespan_s * ALMOST).all(), (name, direction)
            assert (bound.arrive_s >= bound.floor_s[:, None]).all()
            # nothing arrives sooner alone than with everybody: own bytes take the own ports at most
            busiest = bound.link_time_s.max(axis=1) + bound.floor_s
            assert (bound.own_s <= busiest[:, None] * ALMOST).all(), (name, direction)


@settings(deadline=None, max_examples=40)
@given(traffics(), st.floats(1.0, 8.0))
def test_more_bandwidth_never_slows_and_more_bytes_never_speed_up(world: tuple[Cluster, Array], factor: float):
    where, bytes_ = world
    plain = NETWORKS.get("bottleneck")(transfer_of(bytes_), where)
    wider = NETWORKS.get("bottleneck")(transfer_of(bytes_), scaled(where, factor))
    fuller = NETWORKS.get("bottleneck")(transfer_of(bytes_ * factor), where)
    assert (wider.arrive_s <= plain.arrive_s * ALMOST).all()
    assert (fuller.arrive_s * ALMOST >= plain.arrive_s).all()


@pytest.mark.parametrize("name", NETWORKS.names())
def test_one_flow_takes_its_bytes_over_its_slowest_link(name: str):
    where = cluster(2, 4)
    bytes_ = np.zeros((8, 8))
    bytes_[1, 6] = 46e9
    timing = NETWORKS.get(name)(transfer_of(bytes_), where)
    latency = float(where.paths.latency_s([1], [6])[0])
    assert timing.arrive_s[0, 6] == pytest.approx(1.0 + latency)
    assert where.link_tier[timing.binding[0]] in ("rail", "spine")


@pytest.mark.parametrize("name", NETWORKS.names())
def test_a_hot_receiver_waits_for_all_its_bytes(name: str):
    where = cluster(1, 4)
    bytes_ = np.zeros((4, 4))
    bytes_[1:, 0] = 32e9
    timing = NETWORKS.get(name)(transfer_of(bytes_), where)
    assert timing.makespan_s[0] == pytest.approx(3 * 32 / 320, rel=1e-4)
    assert where.link_name[timing.binding[0]].endswith("->node0.gpu0")


@pytest.mark.parametrize("name", NETWORKS.names())
def test_bytes_are_conserved(name: str):
    where = cluster(2, 4)
    flow = random_flow(where, SPEC, tokens=5, layers=2)
    transfer = TRANSPORTS.get("hierarchical")(flow, where, SPEC, "dispatch")
    timing = NETWORKS.get(name)(transfer, where)
    first = [i for i, name in enumerate(where.link_name) if name.split("->")[0] in where.vertices[: where.ranks]]
    np.testing.assert_allclose(
        timing.link_bytes[:, first].sum(axis=1), sum(leg.sum(axis=(1, 2)) for leg in transfer.legs)
    )


@pytest.mark.parametrize("name", NETWORKS.names())
def test_forwarding_waits_for_what_it_forwards(name: str):
    where = cluster(2, 2)
    nic, nvlink = np.zeros((4, 4)), np.zeros((4, 4))
    nic[0, 2], nvlink[2, 3] = 46e6, 1.0
    timing = NETWORKS.get(name)(transfer_of(nic, legs=(nic[None], nvlink[None])), where)
    assert timing.arrive_s[0, 3] >= 1e-3


@pytest.mark.parametrize("name", NETWORKS.names())
def test_a_copy_engine_limits_beside_the_links(name: str):
    where = cluster(1, 4)
    bytes_ = np.full((4, 4), 1e6) * (1 - np.eye(4))
    slow = np.zeros((1, 4))
    slow[0, 2] = 1.0
    timing = NETWORKS.get(name)(transfer_of(bytes_, out_s=(slow,)), where)
    assert timing.makespan_s[0] == pytest.approx(1.0, rel=1e-4)
    assert timing.binding[0] == where.links + 2


def test_fair_sharing_ends_the_small_transfer_early():
    where = cluster(1, 4)
    bytes_ = np.zeros((4, 4))
    bytes_[0, 1], bytes_[0, 2] = 1e6, 9e6
    bound, fluid = (NETWORKS.get(name)(transfer_of(bytes_), where) for name in ("bottleneck", "max-min"))
    assert fluid.arrive_s[0, 1] < bound.arrive_s[0, 1]
    assert fluid.makespan_s[0] == pytest.approx(bound.makespan_s[0])


def test_floors_and_messages_are_paid_once_for_the_layer():
    where = cluster(1, 2)
    timing = NETWORKS.get("bottleneck")(
        transfer_of(np.zeros((2, 2)), floor_s=5e-6, per_message_s=1e-6, messages=np.array([[3.0, 1.0]])), where
    )
    np.testing.assert_allclose(timing.arrive_s, 8e-6)


def test_a_phase_of_58_layers_on_64_ranks_takes_milliseconds():
    where = preset("h100-8x8-rail")
    spec = ModelSpec.preset("deepseek-v3")
    one = random_flow(where, spec, tokens=16)
    transfer = TRANSPORTS.get("hierarchical")(one, where, spec, "dispatch")

    def layers(part: Array) -> Array:
        return np.repeat(part, 58, axis=0)

    whole = Transfer(
        legs=tuple(map(layers, transfer.legs)), messages=layers(transfer.messages), floor_s=transfer.floor_s,
        per_message_s=0.0, sources={}, senders=layers(transfer.senders), own_bytes=layers(transfer.own_bytes),
        out_s=tuple(map(layers, transfer.out_s)), in_s=tuple(map(layers, transfer.in_s)),
    )  # fmt: skip

    def run() -> float:
        begin = time.perf_counter()
        timing: Timing = NETWORKS.get("bottleneck")(whole, where)
        assert timing.arrive_s.shape == (58, 64)
        return time.perf_counter() - begin

    # a few milliseconds on an idle core; the limit leaves room for a busy one
    assert min(run() for _ in range(5)) < 0.1
