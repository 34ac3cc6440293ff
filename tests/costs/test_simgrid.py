"""Fair sharing against SimGrid's fluid model, an independent solver (Debian's python3-simgrid; skipped without)."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from moesim.cluster import Cluster
from moesim.costs.networks.maxmin import fill

ORACLE = Path(__file__).parent / "oracles" / "simgrid_fluid.py"
PYTHON = "/usr/bin/python3"


@cache
def there() -> bool:
    try:
        done = subprocess.run([PYTHON, "-c", "import simgrid"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@pytest.fixture
def simgrid() -> None:
    if not there():
        pytest.skip("SimGrid is not installed (apt install python3-simgrid); the brute force of test_networks remains")


def ends_of(volume: list[float], links: list[list[int]], capacity: list[float]) -> np.ndarray:
    problem = json.dumps({"volume": volume, "links": links, "capacity": capacity})
    done = subprocess.run([PYTHON, str(ORACLE)], input=problem, capture_output=True, text=True, timeout=120, check=True)
    return np.array(json.loads(done.stdout))


def ours(volume: list[float], links: list[list[int]], capacity: list[float]) -> np.ndarray:
    start = np.concatenate([[0], np.cumsum([len(crossed) for crossed in links])])
    link = np.concatenate(links).astype(np.int64)
    return fill(np.array(volume), start, link, np.ones(len(link)), np.array(capacity))


@pytest.mark.usefixtures("simgrid")
def test_random_networks_end_as_simgrid_says():
    rng = np.random.default_rng(0)
    for _ in range(6):
        count, flows = int(rng.integers(2, 9)), int(rng.integers(2, 40))
        capacity = [float(c) for c in rng.integers(10_000, 1_000_000, count)]
        links = [
            sorted(int(k) for k in rng.choice(count, rng.integers(1, count + 1), replace=False)) for _ in range(flows)
        ]
        volume = [float(v) for v in rng.integers(1_000_000, 90_000_000, flows)]
        np.testing.assert_allclose(ours(volume, links, capacity), ends_of(volume, links, capacity), rtol=1e-5)


@pytest.mark.usefixtures("simgrid")
def test_a_skewed_exchange_on_a_cluster_with_a_slow_nic_ends_as_simgrid_says():
    cluster = Cluster.preset("h100-4x8-rail").edit({"nodes": 2, "gpus_per_node": 4}, degrade={"node1.nic2": 0.5})
    rng = np.random.default_rng(1)
    traffic = np.floor(rng.lognormal(0, 1, (8, 8)) * 1e6)
    np.fill_diagonal(traffic, 0)
    source, target = np.nonzero(traffic)
    flow, link, share = cluster.paths.flows(source, target)
    # SimGrid's flows take one path: those whose bytes are spread over several spines are left out
    split = np.unique(flow[share < 1])
    keep = np.setdiff1d(np.arange(len(source)), split)
    links = [[int(k) for k in link[flow == f]] for f in keep]
    volume = [float(traffic[source[f], target[f]]) for f in keep]
    capacity = [float(b) for b in cluster.link_bandwidth]
    assert len(keep) > 20
    found, wanted = ours(volume, links, capacity), ends_of(volume, links, capacity)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert found.max() == pytest.approx(wanted.max(), rel=1e-6)
