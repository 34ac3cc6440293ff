"""Every preset: sizes, constants with sources, bisection bandwidth by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.base.errors import UnknownName
from moesim.base.units import parse
from moesim.cluster import Cluster
from moesim.cluster.describe import bisection
from moesim.cluster.presets import preset_folder, preset_names

GB = 1e9

# ranks, nodes, effective and nominal bisection in bytes/s worked out by hand: of one node 4 GPUs send over NVLink, of
# four the 16 NICs of two, and the spines are as wide
BY_HAND = {
    "h100-1x8": (8, 1, 4 * 320 * GB, 4 * 450 * GB),
    "h100-4x8-rail": (32, 4, 2 * 8 * 46 * GB, 2 * 8 * 50 * GB),
    "h100-8x8-rail": (64, 8, 4 * 8 * 46 * GB, 4 * 8 * 50 * GB),
    "h100-fat-tree-oversub": (64, 8, 2 * 16 * 46 / 2 * GB, 2 * 16 * 50 / 2 * GB),  # 2 leaves of 16 NICs, half goes up
    "a100-4x8-rail": (32, 4, 2 * 8 * 23 * GB, 2 * 8 * 25 * GB),
    "h200-4x8-rail": (32, 4, 2 * 8 * 46 * GB, 2 * 8 * 50 * GB),
    "h800-4x8-rail": (32, 4, 2 * 8 * 43.5 * GB, 2 * 8 * 50 * GB),
    "h20-4x8-rail": (32, 4, 2 * 8 * 46 * GB, 2 * 8 * 50 * GB),
    "b200-4x8-rail": (32, 4, 2 * 8 * 46 * GB, 2 * 8 * 50 * GB),
    "b300-4x8-rail": (32, 4, 2 * 8 * 92 * GB, 2 * 8 * 100 * GB),
    "gb200-nvl72": (72, 1, 36 * 753 * GB, 36 * 900 * GB),
    "gb300-nvl72": (72, 1, 36 * 753 * GB, 36 * 900 * GB),
    "mi300x-4x8-rail": (32, 4, 2 * 8 * 48 * GB, 2 * 8 * 50 * GB),
    "aws-p5-4x8": (32, 4, 2 * 8 * 35 * GB, 2 * 8 * 50 * GB),
    "aws-p6-b200-4x8": (32, 4, 2 * 8 * 36 * GB, 2 * 8 * 50 * GB),
    "aws-p6-b300-4x8": (32, 4, 2 * 8 * 73 * GB, 2 * 8 * 100 * GB),
}

# the same of one node: (effective, nominal) bytes/s
ONE_NODE = {
    "h100-4x8-rail": (4 * 320 * GB, 4 * 450 * GB),
    "a100-4x8-rail": (4 * 203 * GB, 4 * 300 * GB),
    "h200-4x8-rail": (4 * 318 * GB, 4 * 450 * GB),
    "h800-4x8-rail": (4 * 160 * GB, 4 * 200 * GB),
    "h20-4x8-rail": (4 * 320 * GB, 4 * 450 * GB),
    "b200-4x8-rail": (4 * 545 * GB, 4 * 900 * GB),
    "b300-4x8-rail": (4 * 545 * GB, 4 * 900 * GB),
    "gb200-nvl72": (36 * 753 * GB, 36 * 900 * GB),
    "gb300-nvl72": (36 * 753 * GB, 36 * 900 * GB),
    "mi300x-4x8-rail": (4 * 4 * 48 * GB, 4 * 4 * 64 * GB),  # a link from each of 4 GPUs to each of 4
    "aws-p5-4x8": (4 * 320 * GB, 4 * 450 * GB),
    "aws-p6-b200-4x8": (4 * 545 * GB, 4 * 900 * GB),
    "aws-p6-b300-4x8": (4 * 545 * GB, 4 * 900 * GB),
}


def test_the_table_holds_every_preset() -> None:
    assert preset_names() == sorted(BY_HAND)


@pytest.mark.parametrize("name", BY_HAND)
def test_bisection_is_the_hand_computed_one(name: str) -> None:
    ranks, nodes, effective, nominal = BY_HAND[name]
    summary = Cluster.preset(name).describe()
    assert (summary["name"], summary["ranks"], summary["nodes"]) == (name, ranks, nodes)
    assert summary["bisection_bandwidth"] == pytest.approx(effective, rel=1e-4)
    assert summary["bisection_nominal"] == pytest.approx(nominal, rel=1e-4)


@pytest.mark.parametrize("name", ONE_NODE)
def test_one_node_of_a_preset_is_cut_by_its_gpus(name: str) -> None:
    node = Cluster.preset(name).edit({"nodes": 1})
    assert (bisection(node), bisection(node, nominal=True)) == pytest.approx(ONE_NODE[name], rel=1e-4)


@pytest.mark.parametrize("name", ONE_NODE)
@pytest.mark.parametrize("nodes", [2, 16])
def test_the_number_of_nodes_is_one_parameter(name: str, nodes: int) -> None:
    preset = Cluster.preset(name)
    cluster = preset.edit({"nodes": nodes})
    per_node = preset.ranks // preset.nodes
    rail = preset.description.tier.rail
    assert rail is not None
    nic = rail.effective
    assert cluster.ranks == nodes * per_node
    assert bisection(cluster) == pytest.approx(nodes // 2 * per_node * parse(nic, "bandwidth", ""), rel=1e-4)


@pytest.mark.parametrize("name", ["h100-4x8-rail", "b300-4x8-rail"])
def test_128_nodes_are_no_different(name: str) -> None:
    cluster = Cluster.preset(name).edit({"nodes": 128})
    assert cluster.ranks == 1024
    assert bisection(cluster) == pytest.approx(64 * 8 * (92 if name.startswith("b300") else 46) * GB, rel=1e-4)


def test_two_gpus_of_a_mesh_have_one_link_and_nothing_else() -> None:
    cluster = Cluster.preset("mi300x-4x8-rail")
    _, links, shares = cluster.paths.flows([0, 3], [5, 7])
    assert [cluster.link_name[k] for k in links] == ["node0.gpu0->node0.gpu5", "node0.gpu3->node0.gpu7"]
    assert shares.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", BY_HAND)
def test_every_constant_of_a_preset_has_a_source(name: str) -> None:
    sources = Cluster.preset(name).sources
    assert {"gpu.memory", "gpu.flops_bf16", "gpu.hbm_bandwidth", "tier.node.bandwidth", "tier.node.effective"} <= set(
        sources
    )
    for key, text in sources.items():
        assert text.split(":")[0] in ("measured", "datasheet", "derived", "assumed"), key
        assert "no source" not in text, key
        assert "set by" not in text, key


@pytest.mark.parametrize("name", BY_HAND)
def test_effective_bandwidth_never_exceeds_the_nominal(name: str) -> None:
    cluster = Cluster.preset(name)
    assert (cluster.link_bandwidth <= cluster.link_nominal).all()


def test_read_takes_a_preset_name_or_a_file() -> None:
    path = preset_folder() / "h100-1x8.toml"
    assert Cluster.read("h100-1x8") == Cluster.read(path) == Cluster.read(str(path))


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'h100-4x8-rail'"):
        Cluster.read("h100-4x8-rails")


def test_a100_runs_fp8_at_the_bf16_rate() -> None:
    cluster = Cluster.preset("a100-4x8-rail")
    np.testing.assert_array_equal(cluster.flops_fp8, cluster.flops_bf16)
