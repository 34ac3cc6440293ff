"""Compiled paths equal all shortest paths with equal-cost shares, on any topology."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import InputError
from moesim.cluster import Cluster

from .worlds import attempt, brute_force, free_worlds, make, shaped_worlds, tier

any_world = st.one_of(free_worlds(), free_worlds(ports=1), shaped_worlds())


def compiled_shares(cluster: Cluster, s: int, t: int) -> dict[int, float]:
    _, link, share = cluster.paths.flows([s], [t])
    assert len(set(link.tolist())) == len(link)
    return dict(zip(link.tolist(), share.tolist(), strict=True))


@given(any_world)
@settings(max_examples=150, deadline=None)
def test_paths_are_all_shortest_paths_with_equal_cost_shares(world: dict[str, Any]) -> None:
    cluster, problem = attempt(world)
    if cluster is None:
        assert "not connected" in problem
        return
    for s in range(cluster.ranks):
        for t in range(cluster.ranks):
            expected = {} if s == t else brute_force(cluster, s, t)
            assert compiled_shares(cluster, s, t) == pytest.approx(expected)


@given(free_worlds(), st.data())
@settings(max_examples=60, deadline=None)
def test_an_island_is_refused_and_only_an_island(world: dict[str, Any], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(world["switches"]))
    world = {**world, "without": [gone]}
    cluster, problem = attempt(world)
    if cluster is None:
        assert re.search(r"ranks \d \(node\d\.gpu\d\) and \d \(node\d\.gpu\d\) are not connected; add", problem)
        return
    pairs = [(s, t) for s in range(cluster.ranks) for t in range(cluster.ranks) if s != t]
    assert all(brute_force(cluster, s, t) for s, t in pairs)


def reachable(world: dict[str, Any]) -> Cluster:
    return attempt(world)[0] or make(nodes=1, gpus_per_node=2, tier={"node": tier()})


@given(any_world, st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_bytes_are_conserved_across_every_cut(world: dict[str, Any], seed: int) -> None:
    cluster = reachable(world)
    random = np.random.default_rng(seed)
    traffic = random.integers(0, 1000, (cluster.ranks, cluster.ranks)) * (random.random((cluster.ranks, 1)) < 0.7)
    np.fill_diagonal(traffic, 0)
    bytes_on = cluster.paths.link_bytes(traffic)
    inside = random.random(len(cluster.vertices)) < 0.5
    leaves = inside[cluster.link_from] & ~inside[cluster.link_to]
    enters = ~inside[cluster.link_from] & inside[cluster.link_to]
    here = inside[: cluster.ranks]
    net = traffic[here][:, ~here].sum() - traffic[~here][:, here].sum()
    assert bytes_on[leaves].sum() - bytes_on[enters].sum() == pytest.approx(net, abs=1e-6)


@given(any_world, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_view_of_the_paths_tells_the_same(world: dict[str, Any], seed: int) -> None:
    cluster = reachable(world)
    random = np.random.default_rng(seed)
    ranks, links = cluster.ranks, cluster.links
    source, target = np.divmod(np.arange(ranks * ranks), ranks)
    flow, link, share = cluster.paths.flows(source, target)
    traffic, time_s = random.random((2, ranks, ranks)), random.random((2, links))

    by_flow = np.zeros((2, links))
    for layer in range(2):
        np.add.at(by_flow[layer], link, share * traffic[layer].reshape(-1)[flow])
    np.testing.assert_allclose(cluster.paths.link_bytes(traffic), by_flow, atol=1e-9)

    slowest = np.zeros((2, ranks * ranks))
    for layer in range(2):
        np.maximum.at(slowest[layer], flow, time_s[layer][link])
        np.testing.assert_array_equal(cluster.paths.slowest(time_s[layer], source, target), slowest[layer])
    np.testing.assert_array_equal(cluster.paths.slowest_matrix(time_s), slowest.reshape(2, ranks, ranks))

    latency = np.zeros(ranks * ranks)
    np.add.at(latency, flow, share * cluster.link_latency_s[link])
    np.testing.assert_allclose(cluster.paths.latency_s(source, target), latency, atol=1e-15)


def test_a_self_pair_is_free() -> None:
    cluster = Cluster.preset("h100-4x8-rail")
    assert len(cluster.paths.flows([3], [3])[0]) == 0
    assert cluster.paths.latency_s([3], [3])[0] == 0
    assert cluster.paths.link_bytes(np.eye(cluster.ranks)).sum() == 0
    assert not cluster.paths.slowest_matrix(np.ones(cluster.links)).diagonal().any()


def names(cluster: Cluster, s: int, t: int) -> list[str]:
    return [cluster.link_name[link] for link in cluster.paths.flows([s], [t])[1]]


def test_a_node_talks_over_its_switch_and_a_rail_over_its_leaf() -> None:
    cluster = Cluster.preset("h100-4x8-rail")
    assert names(cluster, 0, 1) == ["node0.gpu0->node0.switch", "node0.switch->node0.gpu1"]
    assert names(cluster, 0, 8) == [
        "node0.gpu0->node0.nic0",
        "node0.nic0->rail0",
        "rail0->node1.nic0",
        "node1.nic0->node1.gpu0",
    ]


def test_rails_meet_in_the_spines_in_equal_parts() -> None:
    cluster = Cluster.preset("h100-4x8-rail")
    _, link, share = cluster.paths.flows([0], [9])
    on_spine = [cluster.link_tier[k] == "spine" for k in link]
    np.testing.assert_array_equal(share[on_spine], np.full(8, 0.25))
    assert cluster.paths.latency_s([0], [9])[0] == pytest.approx(3.7e-6)


def rails_without_spines(**rail: Any) -> Cluster:
    tiers = {"node": tier(), "pcie": tier("60 GB/s"), "rail": tier("50 GB/s", **rail)}
    return make(nodes=3, gpus_per_node=2, tier=tiers)


def test_without_spines_rails_do_not_meet() -> None:
    with pytest.raises(InputError, match=r"ranks . \(node..gpu.\) and . \(node..gpu.\) are not connected.*pxn"):
        rails_without_spines()


def test_pxn_hops_to_the_gpu_on_the_rail_of_the_target() -> None:
    cluster = rails_without_spines(pxn=True)
    assert names(cluster, 0, 3) == [
        "node0.gpu0->node0.switch",
        "node0.switch->node0.gpu1",
        "node0.gpu1->node0.nic1",
        "node0.nic1->rail1",
        "rail1->node1.nic1",
        "node1.nic1->node1.gpu1",
    ]
    assert names(cluster, 0, 2)[0] == "node0.gpu0->node0.nic0"
    source, target = np.divmod(np.arange(36), 6)
    flow, link, share = cluster.paths.flows(source, target)
    traffic = np.arange(36.0).reshape(6, 6)
    expected = np.bincount(link, share * traffic.reshape(-1)[flow], cluster.links)
    np.testing.assert_allclose(cluster.paths.link_bytes(traffic), expected)
    time_s = np.arange(cluster.links, dtype=float)
    np.testing.assert_array_equal(
        cluster.paths.slowest_matrix(time_s).reshape(-1), cluster.paths.slowest(time_s, source, target)
    )


def test_pxn_keeps_traffic_off_the_spines() -> None:
    cluster = Cluster.preset("h100-4x8-rail").edit({"tier.rail.pxn": True})
    loaded = cluster.paths.link_bytes(np.ones((32, 32)))
    assert loaded[np.array(cluster.link_tier) == "spine"].sum() == 0


def test_gpus_that_share_a_nic_share_its_bandwidth() -> None:
    tiers = {"node": tier(), "pcie": tier("60 GB/s"), "leaf": tier("50 GB/s", gpus_per_nic=2)}
    cluster = make(nodes=2, gpus_per_node=4, tier=tiers)
    traffic = np.zeros((8, 8))
    traffic[[0, 1], 4] = 10
    nic = cluster.link_name.index("node0.nic0->leaf0")
    assert cluster.paths.link_bytes(traffic)[nic] == 20


def test_a_ring_of_gpus_needs_gpus_that_forward() -> None:
    links = [tier(ends=[f"node0.gpu{i}", f"node0.gpu{(i + 1) % 4}"]) for i in range(4)]
    with pytest.raises(InputError, match="not connected"):
        make(nodes=1, gpus_per_node=4, link=links)
    ring = make(nodes=1, gpus_per_node=4, link=links, through_ranks=True)
    _, _, share = ring.paths.flows([0], [2])
    np.testing.assert_array_equal(share, np.full(4, 0.5))


def test_shapes_are_checked() -> None:
    paths = Cluster.preset("h100-1x8").paths
    with pytest.raises(InputError, match="rank to rank"):
        paths.link_bytes(np.ones((3, 3)))
    with pytest.raises(InputError, match="links"):
        paths.slowest_matrix(np.ones(5))
    with pytest.raises(InputError, match="expected ranks 0 to 7"):
        paths.flows([0], [8])
    with pytest.raises(InputError, match="one length"):
        paths.latency_s([0, 1], [2])


def assert_brute_force(cluster: Cluster) -> None:
    for s in range(cluster.ranks):
        for t in range(cluster.ranks):
            if s != t:
                assert compiled_shares(cluster, s, t) == pytest.approx(brute_force(cluster, s, t))


def test_a_gpu_off_its_switch_goes_outside_while_its_neighbours_stay_inside() -> None:
    tiers = {"node": tier(), "leaf": tier("50 GB/s", "2 us")}
    cluster = make(nodes=2, gpus_per_node=4, tier=tiers, without=["node0.gpu0->node0.switch"])
    assert names(cluster, 0, 1) == ["node0.gpu0->leaf0", "leaf0->node0.gpu1"]
    assert_brute_force(cluster)


def test_two_equal_switches_of_a_node_take_half_each() -> None:
    links = [tier(ends=[f"node0.gpu{g}", f"s{s}"]) for g in range(3) for s in range(2)]
    cluster = make(nodes=1, gpus_per_node=3, switches=["s0", "s1"], link=links)
    assert list(compiled_shares(cluster, 0, 2).values()) == [0.5] * 4
    assert_brute_force(cluster)


def test_a_shortcut_between_two_gpus_of_a_node_is_theirs_alone() -> None:
    # through the node's switch every pair takes two hops; s joins two of the GPUs with less latency
    links = [tier(latency="0.1 us", ends=["node0.gpu0", "s"]), tier(latency="0.1 us", ends=["node0.gpu1", "s"])]
    cluster = make(nodes=1, gpus_per_node=4, tier={"node": tier()}, switches=["s"], link=links)
    assert names(cluster, 0, 1) == ["node0.gpu0->s", "s->node0.gpu1"]
    assert names(cluster, 0, 2) == ["node0.gpu0->node0.switch", "node0.switch->node0.gpu2"]
    assert_brute_force(cluster)
