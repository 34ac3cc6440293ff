"""What clusters and other simulators say about themselves equals the TOML that a person would write of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.base.errors import FormatError, InputError, UnknownName
from moesim.cluster import Cluster
from moesim.cluster.formats import TOPOLOGY_FORMATS, astra_sim, recognise
from moesim.cluster.formats.nccl_xml import facts

SAMPLES = Path(__file__).parent / "samples"

# sample, its format, its hand-written twin, options
TWINS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("nvidia-smi-h100.txt", "nvidia-smi", "nvidia-smi-h100.toml", {}),
    ("nvidia-smi-a100-shared.txt", "nvidia-smi", "nvidia-smi-a100-shared.toml", {}),
    ("nvidia-smi-pcie.txt", "nvidia-smi", "nvidia-smi-pcie.toml", {}),
    ("nccl-h100-4gpu.xml", "nccl-xml", "nccl-h100-4gpu.toml", {}),
    ("nccl-azure-pci.xml", "nccl-xml", "nccl-azure-pci.toml", {}),
    ("rccl-mi300x.xml", "nccl-xml", "rccl-mi300x.toml", {}),
    ("ibnetdiscover-2x4.out", "ibnetdiscover", "fabric-2x4.toml", {}),
    ("iblinkinfo-2x4.out", "iblinkinfo", "fabric-2x4.toml", {}),
    ("fusion", "fusion", "fabric-2x4.toml", {}),
    ("slurm-tree.conf", "slurm", "tree-2x2.toml", {}),
    ("slurm-block.conf", "slurm", "blocks-2x18.toml", {}),
    ("topograph-tree.yaml", "topograph", "tree-2x2.toml", {}),
    ("topograph-racks.yaml", "topograph", "topograph-racks.toml", {}),
    ("topograph-graph.json", "topograph", "tree-2x2.toml", {"like": "h100-4x8-rail"}),
    ("simai-8.topo", "simai", "simai-8.toml", {}),
    ("astra-switch.yml", "astra-sim", "astra-switch.toml", {}),
    ("astra-ring.yml", "astra-sim", "astra-ring.toml", {}),
]


def links(cluster: Cluster) -> list[tuple[float, ...]]:
    """Bandwidths and latency of every link, without its name."""
    columns = cluster.link_nominal, cluster.link_bandwidth, cluster.link_latency_s * 1e9
    return sorted(tuple(float(f"{x:.6g}") for x in row) for row in zip(*columns, strict=True))


def assert_twins(cluster: Cluster, twin: Cluster) -> None:
    """Same ranks in the same nodes, same links, and the same path of every pair, whatever things are called."""
    np.testing.assert_array_equal(cluster.node, twin.node)
    np.testing.assert_array_equal(cluster.local, twin.local)
    assert cluster.device == twin.device
    for field in ("memory_bytes", "flops_bf16", "flops_fp8", "hbm_bandwidth", "speed"):
        np.testing.assert_allclose(getattr(cluster, field), getattr(twin, field))
    assert links(cluster) == links(twin)
    s, t = np.divmod(np.arange(cluster.ranks**2), cluster.ranks)
    for a, b in zip(pairs(cluster, s, t), pairs(twin, s, t), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    traffic = np.random.default_rng(0).random((cluster.ranks, cluster.ranks))
    busy = [np.sort(c.paths.link_bytes(traffic) / c.link_bandwidth) for c in (cluster, twin)]
    np.testing.assert_allclose(*busy, rtol=1e-6, atol=1e-15)


def pairs(cluster: Cluster, s: Any, t: Any) -> tuple[Any, Any]:
    return cluster.paths.latency_s(s, t), cluster.paths.alone_s(1e9 / cluster.link_bandwidth, s, t)


@pytest.mark.parametrize(("sample", "format", "twin", "options"), TWINS, ids=[row[0] for row in TWINS])
def test_a_sample_equals_its_hand_written_twin(sample: str, format: str, twin: str, options: dict[str, Any]) -> None:
    assert recognise(SAMPLES / sample) == format
    cluster = Cluster.read(SAMPLES / sample, **options)
    assert_twins(cluster, Cluster.read(SAMPLES / twin))
    assert cluster == Cluster.read(SAMPLES / sample, format=format, **options)


@pytest.mark.parametrize("sample", [row[0] for row in TWINS])
def test_an_imported_cluster_is_written_and_read_as_toml(sample: str, tmp_path: Path) -> None:
    cluster = Cluster.read(SAMPLES / sample)
    cluster.write(tmp_path / "kept.toml")
    assert Cluster.read(tmp_path / "kept.toml") == cluster


@pytest.mark.parametrize("sample", [row[0] for row in TWINS])
def test_an_import_says_what_it_assumed(sample: str) -> None:
    cluster = Cluster.read(SAMPLES / sample)
    assert cluster.describe()["notes"]
    assert all("no source" not in text for text in cluster.sources.values())


def test_every_builtin_format_has_a_sample() -> None:
    assert {row[1] for row in TWINS} | {"toml"} == set(TOPOLOGY_FORMATS.names())


@pytest.mark.parametrize("sample", ["nvidia-smi-h100.txt", "nccl-h100-4gpu.xml", "nvidia-smi-a100-shared.txt"])
def test_a_node_is_multiplied_by_nodes(sample: str) -> None:
    node = Cluster.read(SAMPLES / sample)
    twin = next(row[2] for row in TWINS if row[0] == sample)
    assert_twins(node.edit({"nodes": 4}), Cluster.read(SAMPLES / twin).edit({"nodes": 4}))


def test_a_toml_file_builds_on_a_foreign_one(tmp_path: Path) -> None:
    (tmp_path / "dump.txt").write_bytes((SAMPLES / "nvidia-smi-h100.txt").read_bytes())
    (tmp_path / "mine.toml").write_text('schema = 1\nbase = "dump.txt"\nnodes = 4\n', encoding="utf-8")
    assert_twins(Cluster.read(tmp_path / "mine.toml"), Cluster.preset("h100-4x8-rail"))


def test_like_brings_other_constants() -> None:
    cluster = Cluster.read(SAMPLES / "nvidia-smi-h100.txt", like="h200-4x8-rail")
    assert_twins(cluster.edit({"nodes": 4}), Cluster.preset("h200-4x8-rail"))


def test_bonded_nics_are_left_out_and_named() -> None:
    notes = Cluster.read(SAMPLES / "nvidia-smi-h100.txt").describe()["notes"]
    assert any("NIC8" in note for note in notes)


def test_uneven_nics_leave_a_node_alone(tmp_path: Path) -> None:
    text = (SAMPLES / "nvidia-smi-a100-shared.txt").read_text(encoding="utf-8")
    # five NICs for eight GPUs, as in the field: the fifth is as near to GPU 7 as the fourth
    wide = [line.rstrip("\n") for line in text.splitlines()]
    wide[0] = wide[0].replace("NIC3    ", "NIC3    NIC4    ")
    head, tail = 9 + 12 * 8 - 1, None
    rows = [f"{line[:head]}{'PXB' if i == 7 else 'SYS':<8}{line[head:tail]}" for i, line in enumerate(wide[1:9])]
    nics = [f"{line:<{head}}SYS" for line in wide[9:13]]
    last = "NIC4    " + "".join(f"{'PXB' if g == 7 else 'SYS':<8}" for g in range(8)) + "SYS     " * 4 + " X"
    path = tmp_path / "five.txt"
    path.write_text("\n".join([wide[0], *rows, *nics, last]), encoding="utf-8")
    cluster = Cluster.read(path)
    assert cluster.ranks == 8
    assert any("not spread evenly" in note for note in cluster.describe()["notes"])
    with pytest.raises(InputError, match="not connected"):
        cluster.edit({"nodes": 2})


def test_nccl_guids_are_those_of_the_fabric_with_the_bytes_swapped() -> None:
    text = (SAMPLES / "nccl-h100-4gpu.xml").read_text(encoding="utf-8")
    assert 'guid="0xa00003739de0"' in text  # 0x0000a00003739de0: eight bytes, the first two zero
    assert facts(SAMPLES / "nccl-h100-4gpu.xml").nics[0].guid == 0xE09D730300A00000
    assert "sysimgguid=0xe09d730300a00000" in (SAMPLES / "ibnetdiscover-2x4.out").read_text(encoding="utf-8")


def test_fusion_finds_the_host_by_guid_and_not_by_file_name() -> None:
    cluster = Cluster.read(SAMPLES / "fusion")
    assert cluster.vertices[0] == "gpu01.gpu0"
    assert cluster.vertices[4] == "gpu02.gpu0"
    assert "18 links per GPU" in cluster.sources["tier.node.bandwidth"]


def test_one_topology_file_stands_for_the_twins_of_its_host(tmp_path: Path) -> None:
    for name in ("fabric.out", "rank0.xml"):
        (tmp_path / name).write_bytes((SAMPLES / "fusion" / name).read_bytes())
    assert_twins(Cluster.read(tmp_path), Cluster.read(SAMPLES / "fabric-2x4.toml"))


def test_a_folder_without_a_fabric_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rank0.xml").write_bytes((SAMPLES / "fusion" / "rank0.xml").read_bytes())
    with pytest.raises(FormatError, match="expected one dump of ibnetdiscover or iblinkinfo"):
        Cluster.read(tmp_path)


def test_the_aggregation_nodes_of_switches_are_no_gpus() -> None:
    for sample in ("ibnetdiscover-2x4.out", "iblinkinfo-2x4.out"):
        assert not any("Aggregation" in vertex for vertex in Cluster.read(SAMPLES / sample).vertices)


def test_a_fabric_of_40_switches_is_read(shared_data: Path) -> None:
    cluster = Cluster.read(shared_data / "fabric" / "ibnetdiscover_ndr_40_switches.out")
    text = (shared_data / "fabric" / "ibnetdiscover_ndr_40_switches.out").read_text(encoding="utf-8")
    named = [line for line in text.splitlines() if line.startswith("Ca\t") and "Technologies" not in line]
    assert cluster.ranks == len(named) == 473
    assert len([vertex for vertex in cluster.vertices if "LEAF" in vertex or "SPINE" in vertex]) == 40
    # 1,114 cables less those of 40 aggregation nodes and 69 adapters without a name; and GPU-NIC, GPU-NVSwitch
    assert cluster.links == 2 * (2228 // 2 - 40 - 69 + 2 * 473)
    assert any("69 channel adapters" in note for note in cluster.describe()["notes"])


def test_a_fabric_dump_of_one_adapter_is_refused(shared_data: Path) -> None:
    with pytest.raises(FormatError, match="no switch with cables"):
        Cluster.read(shared_data / "fabric" / "ibnetdiscover_bad.out")


def test_a_topology_of_simai_is_read(shared_data: Path) -> None:
    cluster = Cluster.read(shared_data / "fabric" / "simai_spectrum_x_16.topo")
    assert (cluster.ranks, cluster.nodes, cluster.links) == (16, 2, 80)


@pytest.mark.parametrize(
    ("sample", "old", "new", "place"),
    [
        ("nvidia-smi-h100.txt", "GPU3\tNV18", "GPU3\tQQ18", "line 5"),
        ("ibnetdiscover-2x4.out", "lid 101 4xNDR", "lid 101 4xZDR", "line 31:"),
        ("ibnetdiscover-2x4.out", "Switch\t65", "Swatch\t65", "line 10"),
        ("iblinkinfo-2x4.out", "CA: gpu01 mlx5_0:", "XA gpu01", "line 1"),
        ("slurm-tree.conf", "LinkSpeed", "LinkSpeeed", "line 3"),
        ("slurm-tree.conf", "n[03-04]", "n[04-03]", "line 3"),
        ("topograph-tree.yaml", "nodes: [n03, n04]", "nodes: 7", r"blocks\[1\]"),
        ("simai-8.topo", "3 8 3600Gbps", "3 8 3600Gbit", "line 9"),
        ("astra-switch.yml", "Switch, Switch", "Switch, Torus", "topology"),
        ("nccl-h100-4gpu.xml", 'count="5"', 'count="five"', "<nvlink>"),
        ("nccl-h100-4gpu.xml", "0x068000", "0x068001", "<nvlink"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(sample: str, old: str, new: str, place: str, tmp_path: Path) -> None:
    text = (SAMPLES / sample).read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / sample
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(FormatError, match=place):
        Cluster.read(path, format=next(row[1] for row in TWINS if row[0] == sample))


def test_a_file_of_no_format_lists_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_text("shall I compare thee", encoding="utf-8")
    with pytest.raises(FormatError, match=r"no topology format knows this file .*nccl-xml"):
        Cluster.read(path)


def test_unknown_formats_and_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'nvidia-smi'"):
        Cluster.read(SAMPLES / "nvidia-smi-h100.txt", format="nvidia-sm")
    with pytest.raises(UnknownName, match="did you mean 'like'"):
        Cluster.read(SAMPLES / "nvidia-smi-h100.txt", lik="h100-4x8-rail")


@pytest.mark.parametrize(
    ("preset", "edits"),
    [("gb200-nvl72", {}), ("mi300x-4x8-rail", {"nodes": 1}), ("h100-4x8-rail", {"nodes": 8})],
)
def test_a_network_of_astra_sim_keeps_the_bandwidths(preset: str, edits: dict[str, Any], tmp_path: Path) -> None:
    cluster = Cluster.preset(preset).edit(edits)
    astra_sim.write(cluster, tmp_path / "net.yml")
    again = Cluster.read(tmp_path / "net.yml")
    np.testing.assert_array_equal(again.node, cluster.node)
    # same rail or same node: ASTRA-sim has no spines, and across rails it goes over NVLink
    s, t = np.divmod(np.arange(cluster.ranks**2), cluster.ranks)
    near = (cluster.node[s] == cluster.node[t]) | (cluster.local[s] == cluster.local[t])
    for a, b in zip(pairs(cluster, s[near], t[near]), pairs(again, s[near], t[near]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("preset", "edits", "problem"),
    [
        ("h100-fat-tree-oversub", {}, "no leaf per GPU"),
        ("h100-4x8-rail", {"tier.rail.nodes_per_leaf": 2}, "several leaves per rail"),
        ("gb200-nvl72", {"nodes": 2}, "no leaf per GPU"),
    ],
)
def test_a_shape_that_astra_sim_cannot_tell_is_refused(preset: str, edits: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        astra_sim.dumps(Cluster.preset(preset).edit(edits))


def test_rank_costs_for_sglang_follow_time_on_an_idle_network(tmp_path: Path) -> None:
    cluster = Cluster.preset("h100-4x8-rail").restrict([8, 0, 9])
    cluster.write(tmp_path / "costs.json", format="sglang")
    costs = np.array(json.loads((tmp_path / "costs.json").read_text(encoding="utf-8"))["rank_cost_matrix"])
    assert (np.diagonal(costs) == 0).all()
    near, rail, cross = 2**20 / 320e9 + 1e-6, 2**20 / 46e9 + 2.8e-6, 2**20 / 46e9 + 3.7e-6
    expected = np.array([[0, rail, near], [rail, 0, cross], [near, cross, 0]]) / near
    np.testing.assert_allclose(costs, expected, rtol=1e-5)


def test_rank_costs_of_too_many_ranks_and_unknown_exports_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="restrict it to the ranks of the group"):
        Cluster.preset("h100-4x8-rail").edit({"nodes": 512}).write(tmp_path / "costs.json", format="sglang")
    with pytest.raises(UnknownName, match="unknown topology export 'sglan': did you mean 'sglang'"):
        Cluster.preset("h100-1x8").write(tmp_path / "costs.json", format="sglan")
    assert list(tmp_path.iterdir()) == []


def test_one_rank_costs_itself_nothing(tmp_path: Path) -> None:
    Cluster.preset("h100-1x8").restrict([3]).write(tmp_path / "costs.json", format="sglang")
    assert json.loads((tmp_path / "costs.json").read_text(encoding="utf-8")) == {"rank_cost_matrix": [[0.0]]}


def test_a_folder_may_hold_other_files_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "two words.d"
    shutil.copytree(SAMPLES / "fusion", folder)
    (folder / "README").write_text("dumped on a Monday", encoding="utf-8")
    cluster = Cluster.read(folder)
    assert cluster.name == "two_words_d"
    assert any("README" in note for note in cluster.describe()["notes"])


def test_a_host_of_one_gpu_is_a_node(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("\tGPU0\tmlx5_0\tCPU Affinity\nGPU0\t X \tPIX\t0-31\nmlx5_0\tPIX\t X\n", encoding="utf-8")
    cluster = Cluster.read(path).edit({"nodes": 3})
    assert (cluster.ranks, cluster.nodes) == (3, 3)


def test_two_nics_of_a_gpu_add_up(tmp_path: Path) -> None:
    text = (SAMPLES / "nccl-h100-4gpu.xml").read_text(encoding="utf-8")
    second = [line.replace("mlx5_", "mlx5_1") for line in text.splitlines() if "<net " in line]
    lines = []
    for line in text.splitlines():
        lines.append(line)
        if "<net " in line:
            lines.append(second.pop(0))
    path = tmp_path / "dual.xml"
    path.write_text("\n".join(lines), encoding="utf-8")
    cluster = Cluster.read(path).edit({"nodes": 2})
    rail = [k for k, tier in enumerate(cluster.link_tier) if tier == "rail"]
    assert set(cluster.link_nominal[rail]) == {100e9}
    assert "2 NICs of 50 GB/s" in cluster.sources["tier.rail.bandwidth"]
