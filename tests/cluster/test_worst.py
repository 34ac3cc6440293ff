"""The worst pair is found among representatives, and is that of all pairs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import Cluster
from moesim.cluster.worst import worst_pair

from .worlds import attempt, free_worlds, shaped_worlds


def slowest_by_hand(cluster: Cluster) -> tuple[float, float]:
    """Bandwidth and latency of the worst of all pairs."""
    s, t = np.divmod(np.arange(cluster.ranks**2), cluster.ranks)
    s, t = s[s != t], t[s != t]
    alone, latency = cluster.paths.alone_s(1 / cluster.link_bandwidth, s, t), cluster.paths.latency_s(s, t)
    return 1 / alone.max(), latency[alone == alone.max()].max()


@given(world=st.one_of(free_worlds(), shaped_worlds()), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_worst_pair_is_that_of_all_pairs(world: dict[str, Any], data: st.DataObject) -> None:
    cluster, _ = attempt(world)
    if cluster is None or cluster.ranks == 1:
        return
    name = data.draw(st.sampled_from(cluster.link_name))
    hurt = cluster.edit(degrade={name.split("#")[0]: data.draw(st.sampled_from([1.0, 0.25]))})
    worst = worst_pair(hurt)
    assert worst is not None
    assert (worst["bandwidth"], worst["latency_s"]) == pytest.approx(slowest_by_hand(hurt))


@pytest.mark.parametrize("preset", ["h100-4x8-rail", "h100-fat-tree-oversub", "mi300x-4x8-rail", "a100-4x8-rail"])
@pytest.mark.parametrize("what", ["node1.gpu3", "node2.nic5", "node0.switch", "node3"])
def test_the_worst_pair_of_a_hurt_preset_is_that_of_all_pairs(preset: str, what: str) -> None:
    if preset.startswith("mi300x") and what == "node0.switch":
        what = "node0.gpu0->node0.gpu1"
    for edits in ({}, {"tier.rail.pxn": True}) if preset == "h100-4x8-rail" else ({},):
        cluster = Cluster.preset(preset).edit(edits, degrade={what: 0.125})
        worst = worst_pair(cluster)
        assert worst is not None
        assert (worst["bandwidth"], worst["latency_s"]) == pytest.approx(slowest_by_hand(cluster))
        assert any(name.startswith(what.split("->")[0].split(".")[0]) for name in worst["names"])


def test_the_worst_pair_of_8192_ranks_takes_no_square_of_them() -> None:
    cluster = Cluster.preset("h100-4x8-rail").edit({"nodes": 1024}, degrade={"node700.nic3": 0.5})
    begin = time.process_time()
    worst = worst_pair(cluster)
    assert time.process_time() - begin < 3.0  # all 67 million pairs take more than 20
    assert worst is not None
    assert worst["names"] == ["node0.gpu0", "node700.gpu3"]
    assert worst["bandwidth"] == pytest.approx(23e9)
