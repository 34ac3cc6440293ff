"""Sub-clusters, what-if edits, deployments, summaries, drawing."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from moesim.base.errors import InputError
from moesim.cluster import Cluster, Deployment
from moesim.cluster.edit import assignment

from .worlds import make, tier


@pytest.fixture(scope="module")
def rail() -> Cluster:
    return Cluster.preset("h100-4x8-rail")


def test_ranks_know_their_node_place_and_rail(rail: Cluster) -> None:
    np.testing.assert_array_equal(rail.node, np.repeat(np.arange(4), 8))
    np.testing.assert_array_equal(rail.local, np.tile(np.arange(8), 4))
    np.testing.assert_array_equal(rail.rail, rail.local)
    np.testing.assert_array_equal(rail.rank_of_node(2), np.arange(16, 24))
    assert rail.same_node[8, 15]
    assert not rail.same_node[8, 16]


def test_traffic_lands_on_the_senders_rail(rail: Cluster) -> None:
    for rank in range(rail.ranks):
        for node in range(rail.nodes):
            there = rail.landing[rank, node]
            assert rail.node[there] == node
            assert rail.rail[there] == rail.rail[rank]
    np.testing.assert_array_equal(rail.landing[np.arange(32), rail.node], np.arange(32))


def test_four_rails_of_two_gpus_each_keep_the_place_of_the_sender() -> None:
    cluster = make(
        nodes=2, gpus_per_node=8, tier={"node": tier(), "rail": tier(latency="2 us", rails=4), "spine": SPINE}
    )
    np.testing.assert_array_equal(cluster.rail[:8], [0, 1, 2, 3, 0, 1, 2, 3])
    np.testing.assert_array_equal(cluster.landing[:8, 1], np.arange(8, 16))


SPINE = {"oversubscription": 1.0, "latency": "1 us", "source": "assumed: a test"}


def test_arrays_stay_read_only_after_pickling(rail: Cluster) -> None:
    again = pickle.loads(pickle.dumps(rail))
    assert again == rail
    for array in (again.node, again.link_bandwidth, again.landing, again.paths.core_share):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


# restrict


def test_a_part_keeps_its_paths_and_the_links_of_the_whole(rail: Cluster) -> None:
    ranks = [17, 3, 20, 2]
    part = rail.restrict(ranks)
    assert (part.ranks, part.nodes, part.links) == (4, 2, rail.links)
    np.testing.assert_array_equal(part.node, [0, 1, 0, 1])
    np.testing.assert_array_equal(part.local, [1, 3, 4, 2])
    traffic = np.random.default_rng(0).random((4, 4))
    whole = np.zeros((32, 32))
    whole[np.ix_(ranks, ranks)] = traffic
    np.testing.assert_allclose(part.paths.link_bytes(traffic), rail.paths.link_bytes(whole))
    np.testing.assert_array_equal(part.paths.latency_matrix(), rail.paths.latency_matrix()[np.ix_(ranks, ranks)])


def test_a_part_of_a_part_is_a_part_of_the_whole(rail: Cluster) -> None:
    assert rail.restrict([4, 9, 30]).restrict([2, 0]) == rail.restrict([30, 4])
    assert rail.restrict(np.arange(32)) == rail


def test_bisection_of_a_part_leaves_idle_gpus_out(rail: Cluster) -> None:
    two_per_node = rail.restrict([0, 1, 8, 9, 16, 17, 24, 25])
    assert two_per_node.describe()["bisection_bandwidth"] == pytest.approx(4 * 46e9)


def test_a_wrong_part_is_refused(rail: Cluster) -> None:
    with pytest.raises(InputError, match="rank 32 does not exist; it has ranks 0 to 31"):
        rail.restrict([0, 32])
    with pytest.raises(InputError, match="rank 5 comes twice"):
        rail.restrict([5, 6, 5])
    with pytest.raises(InputError, match="at least one rank"):
        rail.restrict([])


def test_a_deployment_is_the_first_ranks_or_chosen_ones(rail: Cluster) -> None:
    assert Deployment().restrict(rail) is rail
    assert Deployment(size=16).restrict(rail) == rail.restrict(range(16))
    assert Deployment(ranks=(3, 1)).restrict(rail) == rail.restrict([3, 1])
    with pytest.raises(InputError, match=r"64 ranks wanted, cluster h100-4x8-rail has 32"):
        Deployment(size=64).restrict(rail)
    with pytest.raises(InputError, match="3 does not divide the 32 ranks"):
        Deployment(attention_tp=3).restrict(rail)
    with pytest.raises(InputError, match="either ranks or size"):
        Deployment(ranks=(1,), size=1)


# edit


def test_a_bandwidth_is_edited_as_in_the_file_or_as_a_shell_leaves_it(rail: Cluster) -> None:
    for value in ('"100 GB/s"', "100 GB/s"):
        edited = rail.edit({"tier.rail.bandwidth": value})
        assert edited.link_bandwidth[edited.link_tier.index("rail")] == 92e9
    assert edited.digest != rail.digest
    assert assignment(' tier.rail.bandwidth = "100 GB/s"') == ("tier.rail.bandwidth", '"100 GB/s"')
    with pytest.raises(InputError, match="expected KEY=VALUE"):
        assignment("tier.rail.bandwidth")


def test_nodes_scale_and_uplinks_with_them(rail: Cluster) -> None:
    assert rail.edit({"nodes": 8}).describe()["bisection_bandwidth"] == pytest.approx(32 * 46e9)
    tree = Cluster.preset("h100-fat-tree-oversub").edit({"tier.spine.oversubscription": 4})
    assert tree.describe()["bisection_bandwidth"] == pytest.approx(32 * 46e9 / 4)
    assert rail.edit({"nodes": 4}) == rail


def test_parts_are_taken_away(rail: Cluster) -> None:
    assert rail.edit(without=["node3"]).ranks == 24
    assert rail.edit(without=["node3.gpu7"]).ranks == 31
    assert rail.edit(without=["spine0"]).links == rail.links - 16
    less = rail.edit(without=["rail0->spine0"])
    _, link, share = less.paths.flows([0], [9])
    assert share[[less.link_tier[k] == "spine" for k in link]] == pytest.approx(np.full(6, 1 / 3))
    # taken away one after the other is taken away at once
    assert rail.edit(without=["node3"]).edit(without=["node2"]) == rail.edit(without=["node3", "node2"])


def test_nodes_with_names_of_hosts_are_taken_away_and_degraded(tmp_path: Path) -> None:
    file = tmp_path / "hosts.toml"
    nodes = "".join(f'[[node]]\nname = "{name}.example.org"\n' for name in "ab")
    file.write_text(f'schema = 1\nbase = "h100-4x8-rail"\n{nodes}')
    hosts = Cluster.read(file)
    assert hosts.node_names == ("a.example.org", "b.example.org")
    assert (hosts.ranks_of("a"), hosts.ranks_of("b.example.org")) == ([], list(range(8, 16)))
    assert hosts.edit(without=["a.example.org"]).node_names == ("b.example.org",)
    slower = hosts.edit(degrade={"b.example.org": 0.5}).link_bandwidth < hosts.link_bandwidth
    assert all("b.example.org" in hosts.link_name[k] for k in np.flatnonzero(slower))
    assert np.count_nonzero(slower) == 2 * 8 * 3
    assert hosts.graph().nodes["a.example.org.nic0"]["node"] == "a.example.org"


def test_a_gpu_that_lost_its_nic_needs_gpus_that_forward(rail: Cluster) -> None:
    with pytest.raises(InputError, match=r"not connected.*through_ranks = true"):
        rail.edit(without=["node0.nic1"])
    forwarding = rail.edit({"through_ranks": True}, without=["node0.nic1"])
    tiers = [forwarding.link_tier[k] for k in forwarding.paths.flows([1], [9])[1]]
    assert "node" in tiers
    assert "rail" in tiers


def test_links_degrade_and_nothing_else(rail: Cluster) -> None:
    edited = rail.edit(degrade={"node1.nic3": 0.5})
    slower = edited.link_bandwidth < rail.link_bandwidth
    assert {edited.link_name[k] for k in np.flatnonzero(slower)} == {
        "node1.gpu3->node1.nic3", "node1.nic3->node1.gpu3", "node1.nic3->rail3", "rail3->node1.nic3",
    }  # fmt: skip
    np.testing.assert_allclose(edited.link_bandwidth[slower], rail.link_bandwidth[slower] / 2)
    assert edited.edit(degrade={"node1.nic3": 0.5}) == rail.edit(degrade={"node1.nic3": 0.25})
    worst = edited.describe()["worst_pair"]
    assert "node1.gpu3" in worst["names"]
    assert worst["bandwidth"] == pytest.approx(23e9)


def test_entries_of_lists_are_edited_by_number() -> None:
    links = [tier(ends=["node0.gpu0", "s"]), tier(ends=["node0.gpu1", "s"])]
    cluster = make(nodes=1, gpus_per_node=2, switches=["s"], link=links)
    edited = cluster.edit({"link[1].bandwidth": "7 GB/s"})
    assert edited.link_bandwidth.tolist() == [100e9, 100e9, 7e9, 7e9]
    assert edited.sources["link[1].bandwidth"] == "assumed: set by a what-if edit"
    with pytest.raises(InputError, match=r"no such entry of link; its entries are numbered 0 to 1"):
        cluster.edit({"link[2].bandwidth": "7 GB/s"})


@pytest.mark.parametrize(
    ("sets", "without", "says"),
    [
        ({"tier.rial.bandwidth": "1 GB/s"}, [], "tier.rial: unknown key 'rial': did you mean 'rail'"),
        ({"tier.rail.bandwidth": 800}, [], "tier.rail.bandwidth: expected text with a unit"),
        ({"nodes.many": 3}, [], "nodes is no table"),
        ({"": 3}, [], "'' is no key"),
        ({}, ["node9"], "nothing is named 'node9', did you mean 'node"),
        ({}, [f"node{i}" for i in range(4)], "`without` leaves no GPU"),
    ],
)
def test_a_wrong_edit_is_refused(rail: Cluster, sets: dict[str, object], without: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        rail.edit(sets, without=without)


def test_a_part_takes_edits_that_leave_its_ranks_alone(rail: Cluster) -> None:
    part = rail.restrict([0, 8])
    assert part.edit({"tier.rail.latency": "5 us"}).paths.latency_s([0], [1])[0] == pytest.approx(11e-6)
    with pytest.raises(InputError, match="edit the whole cluster, then restrict it"):
        part.edit(without=["node3"])


# describe, graph


def test_a_summary_has_stable_keys_and_plain_values(rail: Cluster) -> None:
    summary = rail.describe()
    assert list(summary) == [
        "name", "digest", "ranks", "nodes", "ranks_per_node", "devices", "memory_bytes", "flops_bf16", "links",
        "bisection_bandwidth", "bisection_nominal", "tiers", "worst_pair", "paths_bytes", "sources", "notes",
    ]  # fmt: skip
    assert list(summary["tiers"]) == ["node", "pcie", "rail", "spine"]
    assert summary["tiers"]["spine"]["oversubscription"] == pytest.approx(1.0)
    assert Cluster.preset("h100-fat-tree-oversub").describe()["tiers"]["spine"]["oversubscription"] == pytest.approx(2)
    assert summary["worst_pair"]["names"] == ["node0.gpu0", "node1.gpu1"]
    assert summary["worst_pair"]["latency_s"] == pytest.approx(3.7e-6)


def test_one_gpu_has_no_pair() -> None:
    summary = make(nodes=1, gpus_per_node=1).describe()
    assert (summary["worst_pair"], summary["bisection_bandwidth"]) == (None, 0.0)


def test_the_graph_holds_every_vertex_and_cable(rail: Cluster) -> None:
    graph = rail.restrict([3, 4]).graph()
    assert graph.number_of_nodes() == len(rail.vertices)
    assert graph.number_of_edges() == rail.links // 2
    assert (graph.nodes["node0.gpu3"]["rank"], graph.nodes["node0.gpu0"]["rank"]) == (0, None)
    kinds = [kind for _, kind in graph.nodes(data="kind")]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"gpu": 32, "nic": 32, "switch": 4 + 8 + 4}


def test_a_cluster_of_1024_ranks_compiles_without_a_table_of_pairs(rail: Cluster) -> None:
    large = rail.edit({"nodes": 128, "tier.rail.nodes_per_leaf": 32, "tier.spine.switches": 16})
    assert large.ranks == 1024
    assert large.paths.nbytes < 2**20
    traffic = np.ones((1024, 1024))
    bytes_on = large.paths.link_bytes(traffic)
    nic_out = [k for k, name in enumerate(large.link_name) if ".nic" in name.split("->")[0] and "rail" in name]
    np.testing.assert_array_equal(bytes_on[nic_out], np.full(1024, 1016.0))


def test_a_table_of_all_pairs_that_would_not_fit_is_refused_before_it_is_made(rail: Cluster) -> None:
    with pytest.raises(InputError, match=r"would hold .* entries .*give every GPU one NIC"):
        rail.edit({"nodes": 1024, "through_ranks": True})
