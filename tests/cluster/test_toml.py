"""Topology files: round trips, inheritance, and what a wrong file is told."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import FormatError, InputError, MoesimError
from moesim.cluster import Cluster
from moesim.cluster.formats.toml import dumps
from moesim.cluster.presets import preset_folder, preset_names

from .worlds import attempt, free_worlds, shaped_worlds

GOOD = """
schema = 1
nodes = 2
gpus_per_node = 2
[gpu]
model = "X"
memory = "80 GB"
flops_bf16 = "1 PFLOP/s"
hbm_bandwidth = "3 TB/s"
[tier.node]
bandwidth = "100 GB/s"
latency = "1 us"
[tier.leaf]
bandwidth = "50 GB/s"
latency = "2 us"
"""


def saved(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", preset_names())
def test_a_written_preset_reads_back_equal(name: str, tmp_path: Path) -> None:
    cluster = Cluster.preset(name)
    cluster.write(tmp_path / "copy.toml")
    again = Cluster.read(tmp_path / "copy.toml")
    assert again == cluster
    assert again.description == cluster.description
    assert [path.name for path in tmp_path.iterdir()] == ["copy.toml"]


@given(st.one_of(free_worlds(), shaped_worlds()))
@settings(max_examples=40, deadline=None)
def test_any_written_cluster_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, world: dict[str, Any]) -> None:
    cluster, _ = attempt(world)
    if cluster is not None:
        path = tmp_path_factory.mktemp("round") / "world.toml"
        cluster.write(path)
        assert Cluster.read(path) == cluster


plain = st.one_of(st.text(max_size=5), st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False))
keys = st.text(max_size=3)
table = st.dictionaries(keys, st.one_of(plain, st.lists(plain, max_size=3)), max_size=3)
tables = st.dictionaries(keys, st.one_of(plain, table, st.lists(table, min_size=1, max_size=2)), max_size=3)


@given(st.dictionaries(keys, st.one_of(plain, tables), max_size=3))
@settings(max_examples=100, deadline=None)
def test_written_toml_means_what_it_was_written_from(content: dict[str, Any]) -> None:
    assert tomllib.loads(dumps(content)) == content


def test_an_edited_and_restricted_cluster_reads_back_equal(tmp_path: Path) -> None:
    cluster = (
        Cluster.preset("h100-4x8-rail").edit(without=["node3"], degrade={"node0.nic1->rail1": 0.5}).restrict([9, 1])
    )
    cluster.write(tmp_path / "part.toml")
    assert Cluster.read(tmp_path / "part.toml") == cluster


def test_the_name_is_that_of_the_file_unless_given(tmp_path: Path) -> None:
    assert Cluster.read(saved(tmp_path, GOOD)).name == "mine"
    assert Cluster.read(saved(tmp_path, 'name = "other"\n' + GOOD)).name == "other"


# base = ...


def test_a_base_and_one_number_scale_a_cluster(tmp_path: Path) -> None:
    cluster = Cluster.read(saved(tmp_path, 'schema = 1\nbase = "h100-4x8-rail"\nnodes = 16\n'))
    assert (cluster.ranks, cluster.nodes, cluster.name) == (128, 16, "mine")


def test_a_new_bandwidth_keeps_the_measured_efficiency(tmp_path: Path) -> None:
    text = """
    schema = 1
    base = "h100-4x8-rail"
    [tier.rail]
    bandwidth = "100 GB/s"
    source = {bandwidth = "datasheet: ConnectX-8"}
    """
    cluster = Cluster.read(saved(tmp_path, text))
    rail = cluster.link_tier.index("rail")
    assert (cluster.link_nominal[rail], cluster.link_bandwidth[rail]) == (100e9, 92e9)
    assert cluster.sources["tier.rail.bandwidth"] == "datasheet: ConnectX-8"
    assert cluster.sources["tier.rail.effective"].startswith("derived: the ratio")
    assert cluster.sources["tier.rail.latency"].startswith("assumed: half of 2.8 us")


def test_a_constant_without_a_source_says_who_set_it(tmp_path: Path) -> None:
    text = 'schema = 1\nbase = "h100-1x8"\n[gpu]\nmemory = "141 GB"\n'
    sources = Cluster.read(saved(tmp_path, text)).sources
    assert sources["gpu.memory"] == "assumed: set by mine.toml"
    assert sources["gpu.flops_bf16"].startswith("datasheet")
    assert Cluster.read(saved(tmp_path, GOOD)).sources["gpu.memory"] == "assumed: no source given"


@pytest.mark.parametrize("where", ["[gpu]\n", "[[node]]\n[[node]]\ngpus = 4\n[node.gpu]\n"])
def test_a_gpu_of_another_model_says_what_it_took_over_and_takes_over_no_fp8(where: str, tmp_path: Path) -> None:
    text = f'schema = 1\nbase = "h100-1x8"\n{where}model = "A100-SXM"\nflops_bf16 = "312 TFLOP/s"\n'
    if "node" in where:
        text = text.replace("h100-1x8", "h100-4x8-rail")
    cluster = Cluster.read(saved(tmp_path, text))
    assert cluster.device[-1] == "A100-SXM"
    assert cluster.flops_fp8[-1] == cluster.flops_bf16[-1] == 312e12
    place = "node[1].gpu" if "node" in where else "gpu"
    assert cluster.sources[f"{place}.hbm_bandwidth"] == "assumed: that of H100-SXM"
    assert f"{place}.flops_fp8" not in cluster.sources


def test_a_gpu_of_another_model_keeps_fp8_with_the_arithmetic_it_goes_with(tmp_path: Path) -> None:
    change = '[[node]]\ncount = 3\n[[node]]\ngpu = {model = "H200-SXM", hbm_bandwidth = "4.8 TB/s"}\n'
    cluster = Cluster.read(saved(tmp_path, f'schema = 1\nbase = "h100-4x8-rail"\n{change}'))
    assert cluster.flops_fp8[-1] == 1979e12
    assert cluster.sources["node[1].gpu.flops_fp8"] == "assumed: that of H100-SXM"


def test_a_leaf_replaces_the_rails_of_the_base_and_node_tables_replace_its_nodes(tmp_path: Path) -> None:
    text = """
    schema = 1
    base = "h100-4x8-rail"
    [tier.leaf]
    bandwidth = "25 GB/s"
    latency = "1 us"
    [[node]]
    count = 2
    [[node]]
    name = "slow"
    gpus = 4
    nic_bandwidth = "12.5 GB/s"
    gpu = {model = "L40S", memory = "48 GB", speed = 0.5}
    """
    cluster = Cluster.read(saved(tmp_path, text))
    assert set(cluster.link_tier) == {"node", "pcie", "leaf", "spine"}
    assert (cluster.ranks, cluster.device.count("L40S"), cluster.speed[16:].tolist()) == (20, 4, [0.5] * 4)
    assert cluster.link_bandwidth[cluster.link_name.index("slow.nic0->leaf0")] == 12.5e9
    # nodes of other sizes: GPUs 4 to 7 have no twin on their rail and land on place modulo 4
    assert cluster.landing[:8, 2].tolist() == [16, 17, 18, 19, 16, 17, 18, 19]


def test_a_base_is_found_beside_its_file_and_never_above_itself(tmp_path: Path) -> None:
    saved(tmp_path, GOOD, "ground.toml")
    assert Cluster.read(saved(tmp_path, 'schema = 1\nbase = "ground.toml"\nnodes = 3')).nodes == 3
    saved(tmp_path, 'schema = 1\nbase = "b.toml"', "a.toml")
    with pytest.raises(FormatError, match=r"a\.toml: base: b\.toml is above itself"):
        Cluster.read(saved(tmp_path, 'schema = 1\nbase = "a.toml"', "b.toml"))


# errors: file, key, what was expected, what to do

WRONG = [
    ('bandwidth = "100 GB/s"', "bandwidth = 100", r"tier\.node\.bandwidth: expected text .* value 100"),
    ('bandwidth = "100 GB/s"', 'bandwidth = "100 GB"', r"tier\.node\.bandwidth: unknown unit 'GB'"),
    ('bandwidth = "100 GB/s"', 'bandwidth = "0 GB/s"', r"tier\.node\.bandwidth: expected more than zero.*without"),
    ('bandwidth = "100 GB/s"', 'bandwith = "100 GB/s"', r"tier\.node\.bandwi.*(missing|did you mean 'bandwidth')"),
    ("gpus_per_node = 2", "gpus_per_node = 2\ngpu_per_node = 2", r"gpu_per_node: unknown .*mean 'gpus_per_node'"),
    ("[tier.leaf]", 'effective = "101 GB/s"\n[tier.leaf]', "tier.node: `effective` .* is more than the nominal"),
    ("schema = 1", "schema = 1\ndegrade = {'node0.gpu0' = 2}", r"degrade\.'node0\.gpu0': input should be less than"),
    ('latency = "2 us"', 'latency = "1 us"', "tier: the NIC's latency '1 us' must be more"),
    ("[tier.leaf]", "[tier.leave]", r"tier\.leave: unknown key 'leave': did you mean 'leaf'"),
    ("nodes = 2", "nodes = 0", r"nodes: input should be greater than or equal to 1, got 0"),
    ("nodes = 2", 'nodes = "2"', r"nodes: input should be a valid integer, got '2'"),
    ("nodes = 2", "nodes = true", r"nodes: input should be a valid integer, got True"),
    ("nodes = 2", "", r"give either `nodes`"),
    ("nodes = 2", "nodes = 9000", r"18,000 GPUs are more than moesim takes"),
    ("[gpu]", f"tier.spine = {{switches = {10**9}, oversubscription = 1, latency = '1 us'}}\n[gpu]", "fewer and wider"),
    ("schema = 1", "", r"schema: missing; begin a topology file with `schema = 1`"),
    ("schema = 1", "schema = 2", r"schema: expected 1, got 2"),
    ("schema = 1", "schema = 1\nbase = 3", r"base: expected the name of a preset or of a file"),
    ("schema = 1", 'schema = 1\nbase = "h100-4x9"', r"base: unknown topology 'h100-4x9': did you mean"),
    ("schema = 1", 'schema = 1\nwithout = ["node7"]', r"without: nothing is named 'node7', did you mean 'node"),
    ("schema = 1", "schema = 1\nranks = [0, 0]", r"rank 0 comes twice"),
    ("schema = 1", "schema = 1\nranks = [4]", r"rank 4 does not exist; it has ranks 0 to 3"),
    ("[tier.leaf]", '[[link]]\nends = ["node0.gpu9", "leaf0"]', r"link\[0\]\.ends: unknown 'node0\.gpu9', did you"),
    ('model = "X"', 'model = "X"\nsource = "trust me"', r"gpu: source: expected \"measured: \.\.\.\""),
    ('model = "X"', 'model = "X"\nsource = {memory = "x"}', r"gpu: source\.memory: expected .*got 'x'"),
    ('model = "X"', 'model = "X"\nsource = {memry = "assumed: x"}', r"gpu: source.*'memry': did you mean 'memory'"),
    ('model = "X"', 'model = "X"\nspeed = inf', r"gpu\.speed: input should be a finite number, got inf"),
    ("[gpu]", "[gpu", r"expected TOML: .*line"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "says"), WRONG)
def test_a_wrong_file_is_told_in_one_line(good: str, bad: str, says: str, tmp_path: Path) -> None:
    assert good in GOOD
    path = saved(tmp_path, GOOD.replace(good, bad, 1))
    with pytest.raises(FormatError, match=says) as caught:
        Cluster.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_nodes_that_nothing_connects_are_named(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("[tier.leaf]")]
    with pytest.raises(
        FormatError, match=r"ranks 2 \(node1\.gpu0\) and 0 \(node0\.gpu0\) are not connected; add a \[tier"
    ):
        Cluster.read(saved(tmp_path, text))


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file; presets are"):
        Cluster.read(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"schema = 1\n\xff\xfe")
    with pytest.raises(FormatError, match="byte 11: expected UTF-8"):
        Cluster.read(tmp_path / "binary.toml")


def test_absurd_files_end_early(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="larger than"):
        Cluster.read(saved(tmp_path, "#" * (9 * 2**20)))
    with pytest.raises(FormatError, match="expected TOML"):
        Cluster.read(saved(tmp_path, "a = " + "[" * 100_000))
    with pytest.raises(FormatError, match="expected TOML"):
        Cluster.read(saved(tmp_path, "nodes = 1" + "0" * 5000))


lines = (preset_folder() / "h100-fat-tree-oversub.toml").read_text(encoding="utf-8").splitlines()
junk = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["nodes = -1", "nodes = 1e9", "[tier]", "tier = 3", "link = [{}]", "node = [3]", "[degrade]\nx = 2"]
    ),
)


@given(st.lists(st.tuples(st.integers(0, len(lines) - 1), junk), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_a_moesim_error_or_a_cluster(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, str]]
) -> None:
    text = list(lines)
    for place, line in damage:
        text[place] = line
    path = tmp_path_factory.mktemp("fuzz") / "damaged.toml"
    path.write_bytes("\n".join(text).encode("utf-8", "surrogatepass"))
    try:
        cluster = Cluster.read(path)
    except MoesimError as error:
        assert "damaged.toml" in str(error)  # noqa: PT017 - either outcome is fine, another exception is not
    else:
        assert cluster.ranks > 0
