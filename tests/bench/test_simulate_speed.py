"""Speed of the simulator on one core: engines once Flows are built, and decode from a cold trace.

Run with ``pytest -m bench tests/bench/test_simulate_speed.py -s``. DeepSeek-V3 (58 MoE layers, 256 experts, top 8) on
64 ranks; a layer-step is one layer of one step, with both micro-batches where there are two. CPU seconds, best of
some runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from moesim.cluster import Cluster
from moesim.placement import Placement, dispatch, nearest_table
from moesim.simulate import simulate
from moesim.simulate.inputs import Setup, prepare
from moesim.simulate.loads import Load, Loader
from moesim.simulate.run import ENGINES
from moesim.spec import ModelSpec
from moesim.trace import DECODE, Trace

RANKS, TOKENS, STEPS = 64, 128, 6
SPEC = ModelSpec.preset("deepseek-v3")


@cache
def traffic() -> tuple[Trace, Cluster, Placement]:
    """Skewed decode traffic (lognormal, sigma 1) on 8 nodes of 8 H100, every expert once."""
    rng = np.random.default_rng(0)
    weight = np.log(rng.lognormal(0, 1, SPEC.experts))
    drawn = np.argpartition(rng.gumbel(size=(8192, SPEC.experts)) + weight, -SPEC.top_k, axis=1)[:, -SPEC.top_k :]
    tokens = RANKS * TOKENS * STEPS
    routes = drawn.astype(np.int16)[rng.integers(0, len(drawn), (tokens, SPEC.layers))]
    trace = Trace(
        spec=SPEC,
        routes=routes,
        request=np.arange(tokens) // STEPS,
        position=1000 + np.arange(tokens) % STEPS,
        phase=np.full(tokens, DECODE, dtype=np.uint8),
    )
    experts = np.tile(np.arange(SPEC.experts).reshape(RANKS, -1), (SPEC.layers, 1, 1))
    return trace, Cluster.preset("h100-8x8-rail"), Placement(experts, SPEC.experts)


def setup(schedule: str) -> Setup:
    trace, cluster, placement = traffic()
    nothing = dict.fromkeys(("policy", "network", "deployment", "dims", "phase", "costs", "max_steps"))
    return prepare(
        trace, cluster, placement, transport="direct", schedule=schedule, tokens_per_rank=TOKENS, seed=0, **nothing
    )


@cache
def load(schedule: str) -> tuple[Setup, Load]:
    ready = setup(schedule)
    return ready, Loader(ready).load(0)


def best(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.bench
@pytest.mark.parametrize(
    ("engine", "schedule", "wanted"),
    [
        ("closed-form", "sequential", 20_000),
        ("closed-form", "shared-overlap", 20_000),
        ("events", "sequential", 5_000),
        ("events", "shared-overlap", 5_000),
        ("events", "two-batch", 5_000),
    ],
)
def test_layer_steps_per_second_once_flows_are_built(engine: str, schedule: str, wanted: int) -> None:
    ready, loaded = load(schedule)
    run = ENGINES[engine]
    run(loaded.work, ready.schedule)
    speed = SPEC.layers / best(lambda: run(loaded.work, ready.schedule), 10)
    sys.stdout.write(f"\n{engine:12} {schedule:14} {speed:10,.0f} layer-steps/s\n")
    assert speed >= wanted


@pytest.mark.bench
@pytest.mark.parametrize("schedule", ["sequential", "two-batch"])
def test_decode_from_a_cold_trace(schedule: str) -> None:
    trace, cluster, placement = traffic()
    run = {"transport": "direct", "schedule": schedule, "tokens_per_rank": TOKENS}
    simulate(trace, cluster, placement, max_steps=1, **run)
    whole_s = best(lambda: simulate(trace, cluster, placement, **run), 3)
    batches = setup(schedule).batches
    table = nearest_table(placement, cluster.node)
    arguments = batches.routes(0), batches.homes(0), placement, cluster.node, cluster.landing
    flows_s = best(lambda: dispatch(*arguments, table=table), 3) * STEPS
    sys.stdout.write(
        f"\n{schedule:14} {STEPS * SPEC.layers / whole_s:8,.0f} layer-steps/s from a cold trace "
        f"({RANKS} ranks x {TOKENS} tokens x top {SPEC.top_k}), {whole_s / flows_s:.1f} times the Flows alone\n"
    )
    # relative, so that a busy machine does not decide
    assert whole_s <= 5 * flows_s
