"""Every preset: sizes, constants with sources, bisection bandwidth by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.base.errors import UnknownName
from moesim.cluster import Cluster
from moesim.cluster.presets import preset_folder, preset_names

GB = 1e9

# ranks, nodes, effective bisection in bytes/s worked out by hand
BY_HAND = {
    "h100-1x8": (8, 1, 4 * 320 * GB),  # 4 GPUs send over NVLink
    "h100-4x8-rail": (32, 4, 2 * 8 * 46 * GB),  # 16 NICs, spines as wide
    "h100-8x8-rail": (64, 8, 4 * 8 * 46 * GB),
    "a100-4x8-rail": (32, 4, 2 * 8 * 23 * GB),
    "gb200-nvl72": (72, 1, 36 * 610 * GB),
    "h100-fat-tree-oversub": (64, 8, 2 * 16 * 46 / 2 * GB),  # 2 leaves of 16 NICs, half of it goes up
}


def test_the_table_holds_every_preset() -> None:
    assert preset_names() == sorted(BY_HAND)


@pytest.mark.parametrize("name", BY_HAND)
def test_bisection_is_the_hand_computed_one(name: str) -> None:
    ranks, nodes, bisection = BY_HAND[name]
    summary = Cluster.preset(name).describe()
    assert (summary["name"], summary["ranks"], summary["nodes"]) == (name, ranks, nodes)
    assert summary["bisection_bandwidth"] == pytest.approx(bisection, rel=1e-4)
    assert summary["bisection_nominal"] > summary["bisection_bandwidth"]


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
