"""Time to build a cluster and to load its links, against the number of ranks: the table of docs/benchmarks.md."""

from __future__ import annotations

import time

import numpy as np
import pytest

from moesim.cluster import Cluster

SHAPES = {
    "rail": ("h100-4x8-rail", {}),
    "fat tree": ("h100-fat-tree-oversub", {}),
}


@pytest.mark.bench
@pytest.mark.parametrize("ranks", [8, 32, 128, 1024, 8192])
@pytest.mark.parametrize("shape", SHAPES)
def test_building_grows_with_the_wiring_and_not_with_the_square_of_the_ranks(shape: str, ranks: int):
    preset, edits = SHAPES[shape]
    small = Cluster.preset(preset)
    begun = time.process_time()
    cluster = small.edit({"nodes": ranks // 8, **edits})
    built_s = time.process_time() - begun
    assert cluster.ranks == ranks
    rng = np.random.default_rng(0)
    traffic = rng.random((ranks, ranks), dtype=np.float32)
    cluster.paths.link_bytes(traffic)  # compiles
    begun = time.process_time()
    cluster.paths.link_bytes(traffic)
    loaded_s = time.process_time() - begun
    print(
        f"\n{shape:>10} {ranks:>6} ranks {cluster.links:>7} links: build {built_s:.2f} s, tables "
        f"{cluster.paths.nbytes / 1e6:.2f} MB, link bytes {loaded_s * 1e3:.2f} ms"
    )
    assert built_s < 30
    # a table of all pairs would hold ranks x ranks x hops entries of 12 bytes
    assert cluster.paths.nbytes < max(ranks * ranks * 4, 1e6)
