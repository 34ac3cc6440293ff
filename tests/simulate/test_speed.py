"""Speed in counts and in ratios within one run, so that a busy machine does not decide; seconds are in tests/bench."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import simpy

from moesim.cluster import Cluster
from moesim.placement import Placement, dispatch, nearest_table
from moesim.simulate import simulate
from moesim.simulate.inputs import Setup, prepare
from moesim.simulate.loads import Loader
from moesim.simulate.run import ENGINES
from moesim.simulate.work import Work
from moesim.spec import ModelSpec
from moesim.trace import DECODE, Batches, Trace, make_batches

RANKS, TOKENS, LAYERS = 64, 128, 8


@cache
def traffic() -> tuple[Batches, Cluster, Placement]:
    full = ModelSpec.preset("deepseek-v3")
    facts = full.to_dict() | {"layer_ids": tuple(range(3, 3 + LAYERS)), "num_hidden_layers": 3 + LAYERS}
    spec = ModelSpec.from_dict(facts)
    rng = np.random.default_rng(0)
    drawn = np.argsort(rng.gumbel(size=(4096, spec.experts)), axis=1)[:, : spec.top_k].astype(np.int16)
    tokens = RANKS * TOKENS
    trace = Trace(
        spec,
        routes=drawn[rng.integers(0, len(drawn), (tokens, LAYERS))],
        request=np.arange(tokens),
        position=np.full(tokens, 1000),
        phase=np.full(tokens, DECODE, np.uint8),
    )
    experts = np.tile(np.arange(spec.experts).reshape(RANKS, -1), (LAYERS, 1, 1))
    batches = make_batches(trace, RANKS, tokens_per_rank=TOKENS)
    return batches, Cluster.preset("h100-8x8-rail"), Placement(experts, spec.experts)


def work_of(schedule: str) -> tuple[Work, Setup]:
    batches, cluster, placement = traffic()
    nothing = dict.fromkeys(
        ("policy", "network", "deployment", "dims", "phase", "costs", "max_steps", "tokens_per_rank")
    )
    setup = prepare(batches, cluster, placement, transport="direct", schedule=schedule, seed=0, **nothing)
    return Loader(setup).load(0).work, setup


def best(run: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return min(times)


def calls(run: Callable[[], object]) -> int:
    """Calls that run makes, of Python and of C: what an engine that lives in the interpreter costs, on any machine."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


def calls_of_a_timeout() -> float:
    def tick() -> Iterator[simpy.Event]:
        for _ in range(1_000):
            yield env.timeout(1)

    env = simpy.Environment()
    env.process(tick())
    return calls(env.run) / 1_000


@pytest.mark.parametrize(("schedule", "timeouts"), [("sequential", 60), ("two-batch", 150)])
def test_an_event_engines_layer_costs_a_few_dozen_timeouts_of_simpy(schedule: str, timeouts: float) -> None:
    work, setup = work_of(schedule)
    ENGINES["events"](work, setup.schedule)
    a_layer = calls(lambda: ENGINES["events"](work, setup.schedule)) / LAYERS / calls_of_a_timeout()
    assert a_layer < timeouts


def test_the_closed_form_does_not_step_through_events() -> None:
    work, setup = work_of("sequential")

    def count(name: str) -> int:
        ENGINES[name](work, setup.schedule)
        return calls(lambda: ENGINES[name](work, setup.schedule))

    assert count("closed-form") < count("events") / 10


def test_a_cold_step_costs_little_beside_its_flows() -> None:
    batches, cluster, placement = traffic()
    table = nearest_table(placement, cluster.node)
    arguments = batches.routes(0), batches.homes(0), placement, cluster.node, cluster.landing
    dispatch(*arguments, table=table)
    simulate(batches, cluster, placement, transport="direct")
    flows_s = best(lambda: dispatch(*arguments, table=table))
    whole_s = best(lambda: simulate(batches, cluster, placement, transport="direct"))
    # 3.5 to 6 times, by how busy the machine is; a loop over tokens or links in Python costs a hundred
    assert whole_s < 12 * flows_s, f"{whole_s / flows_s:.1f} times the Flows"
