"""A whole DeepSeek-V3 decode step on 1,024 and on 8,192 ranks: seconds and memory of one process.

``pytest -m bench tests/bench/test_simulate_large.py -s`` runs 1,024 ranks, ``-m slow`` 8,192 (minutes, about 9 GB).
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import pytest

from moesim.cluster import Cluster
from moesim.placement import Placement
from moesim.simulate import simulate
from moesim.spec import ModelSpec
from moesim.trace import DECODE, Batches, Trace, make_batches

SPEC = ModelSpec.preset("deepseek-v3")
TOKENS = 128


def step(ranks: int) -> tuple[Batches, Cluster, Placement]:
    """Skewed decode traffic (lognormal, sigma 1) on nodes of 8 H100, experts dealt round and round."""
    rng = np.random.default_rng(0)
    weight = np.log(rng.lognormal(0, 1, SPEC.experts))
    drawn = np.argpartition(rng.gumbel(size=(8192, SPEC.experts)) + weight, -SPEC.top_k, axis=1)[:, -SPEC.top_k :]
    drawn = drawn.astype(np.int16)
    tokens = ranks * TOKENS
    routes = np.empty((tokens, SPEC.layers, SPEC.top_k), np.int16)
    for layer in range(SPEC.layers):
        routes[:, layer] = drawn[rng.integers(0, len(drawn), tokens)]
    trace = Trace(
        spec=SPEC,
        routes=routes,
        request=np.arange(tokens),
        position=np.full(tokens, 1000),
        phase=np.full(tokens, DECODE, dtype=np.uint8),
    )
    experts = np.tile((np.arange(ranks) % SPEC.experts).reshape(ranks, 1), (SPEC.layers, 1, 1))
    cluster = Cluster.preset("h100-8x8-rail").edit({"nodes": ranks // 8})
    return make_batches(trace, ranks, tokens_per_rank=TOKENS), cluster, Placement(experts, SPEC.experts)


def run(ranks: int, repeats: int) -> float:
    batches, cluster, placement = step(ranks)
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        report = simulate(batches, cluster, placement, transport="direct")
        times.append(time.process_time() - begin)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    sys.stdout.write(
        f"\n{ranks:,} ranks x {TOKENS} tokens, {SPEC.layers} layers: {min(times):.1f} s of processor time, "
        f"{held:.1f} GB at most; the step takes {report.mean_step_s * 1e3:.1f} ms\n"
    )
    assert report.link_bytes.sum() > 0
    return min(times)


@pytest.mark.bench
def test_a_step_on_1024_ranks() -> None:
    # compilation is in the first of them
    assert run(1024, 3) < 5


@pytest.mark.slow
def test_a_step_on_8192_ranks() -> None:
    run(8192, 1)
