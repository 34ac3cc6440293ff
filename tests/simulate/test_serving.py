"""Serving under load: queueing laws, conservation, schedulers, failures; the closed form as step model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import FormatError, InputError, UnknownName
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.placement import Placement
from moesim.simulate.serving import (
    SCHEDULERS,
    Affinity,
    Arrivals,
    Change,
    ClosedForm,
    ConstantStep,
    Limits,
    PoolSpec,
    ServingReport,
    StepBatch,
    TokenSource,
    gamma,
    poisson,
    read_arrivals,
    serve,
)
from moesim.spec import Attention, ModelSpec
from moesim.trace.synthetic import router

DATA = Path(__file__).parents[3] / "shared" / "data" / "requests"
ONE_AT_A_TIME = Limits(tokens=1, requests=1, kv_tokens=10)
SPEC = ModelSpec(
    name="served", layer_ids=tuple(range(1, 13)), num_hidden_layers=13, experts=16, top_k=3, hidden=2048,
    intermediate=1024, attention=Attention(heads=16, kv_heads=4, head_dim=128),
)  # fmt: skip


def single_server(rate: float, requests: int, seed: int = 1) -> ServingReport:
    arrivals = poisson(rate, requests, prompt=1, output=1, seed=seed)
    return serve(arrivals, PoolSpec(1, ConstantStep(1.0), ONE_AT_A_TIME), scheduler="round-robin")


def lindley(at_s: np.ndarray) -> np.ndarray:
    ends, before = np.empty(len(at_s)), 0.0
    for request, arrival in enumerate(at_s):
        before = ends[request] = max(before, arrival) + 1.0
    return ends


@pytest.mark.parametrize("load", [0.3, 0.5, 0.6])
def test_one_server_of_constant_time_waits_as_pollaczek_and_khinchine_say(load: float):
    report = single_server(load, 50_000)
    waited = float((report.ttft_s - 1.0).mean())
    assert waited == pytest.approx(load / (2 * (1 - load)), rel=0.03)
    np.testing.assert_allclose(report.first_s, lindley(report.arrival_s), rtol=1e-12)
    assert report.utilisation["all"][0] == pytest.approx(load, rel=0.02)


def test_below_full_load_queues_are_bounded_and_above_they_grow():
    below, above = single_server(0.9, 30_000), single_server(1.1, 30_000)
    quarters = [np.array_split(run.steps["all"]["waiting"], 4) for run in (below, above)]
    means = [[float(part.mean()) for part in run] for run in quarters]
    # M/D/1 at 0.9 keeps 4 requests waiting in the mean
    assert max(means[0]) < 12
    assert means[1][0] < means[1][1] < means[1][2] < means[1][3]
    assert means[1][3] > 1000


requests = st.lists(
    st.tuples(st.floats(0, 3), st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=40
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(
    requests, st.integers(1, 4), st.integers(1, 16), st.integers(1, 5), st.integers(10, 80),
    st.sampled_from(["round-robin", "least-loaded", "expert-affinity"]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_requests_and_tokens_are_conserved(given_requests, ranks, tokens, running, cache, scheduler, apart, failing):
    at, prompt, output = zip(*sorted(given_requests), strict=True)
    arrivals = Arrivals(np.array(at), np.array(prompt), np.array(output), "drawn")
    pool = PoolSpec(ranks, ConstantStep(0.1, ranks), Limits(tokens, running, cache))
    changes = [Change(0.75, 0.3, lost=[0], pool="decode" if apart else "all")] if failing and ranks > 1 else []
    report = serve(
        arrivals, pool, decode=pool if apart else None, transfer_s=lambda n: 0.01 * n, scheduler=scheduler,
        changes=changes,
    )  # fmt: skip
    # everything that fits a rank is answered to the end, once
    assert (report.finished == ~report.rejected).all()
    assert (report.rejected == (arrivals.prompt + arrivals.output > cache)).all()
    assert (report.generated == np.where(report.rejected, 0, arrivals.output)).all()
    # a token is computed for each of the prompt and each of the answer but its last, and again where it was lost
    computed = sum(int(part["decode"].sum() + part["prefill"].sum()) for part in report.steps.values())
    served = ~report.rejected
    asked = int((arrivals.prompt + arrivals.output - 1)[served].sum())
    assert computed == asked + int(report.recomputed.sum())
    # nothing before its cause
    assert (report.first_s[served] >= arrivals.at_s[served] + 0.1 - 1e-9).all()
    shortest = 0.1 * (arrivals.output - 1)
    assert (report.finish_s[served] >= (report.first_s + shortest)[served] - 1e-9).all()
    for part in report.steps.values():
        assert (part["decode"] + part["prefill"] <= max(tokens, running) * ranks).all()


def test_a_full_cache_preempts_the_youngest_and_computes_it_again():
    arrivals = Arrivals(np.zeros(3), np.full(3, 10), np.full(3, 30), "three")
    report = serve(arrivals, PoolSpec(1, ConstantStep(0.1), Limits(64, 8, 60)))
    assert report.preempted > 0
    assert report.recomputed[0] == 0
    assert report.recomputed[2] > 0
    assert report.finished.all()


def test_what_is_computed_again_is_counted_once_where_a_request_is_preempted_and_its_rank_then_lost():
    arrivals = Arrivals(np.zeros(6), np.full(6, 10), np.full(6, 30), "three for each of two")
    pool = PoolSpec(2, ConstantStep(0.1, 2), Limits(64, 8, 60))
    report = serve(arrivals, pool, scheduler="round-robin", changes=[Change(1.5, lost=[0])])
    assert report.finished.all()
    assert report.preempted > 0
    computed = int((report.steps["all"]["decode"] + report.steps["all"]["prefill"]).sum())
    assert computed == 6 * (10 + 30 - 1) + int(report.recomputed.sum())


def test_chunks_of_prompts_leave_room_for_answers():
    arrivals = Arrivals(np.array([0.0, 0.5]), np.array([4, 100]), np.array([50, 2]), "a short and a long one")
    report = serve(arrivals, PoolSpec(1, ConstantStep(0.1), Limits(16, 8, 1000)))
    # the long prompt takes 15 tokens of every step beside the running answer, which is never held up
    assert report.first_s[1] - 0.5 == pytest.approx(0.1 * np.ceil(100 / 15), abs=0.11)
    assert report.finish_s[0] - report.first_s[0] == pytest.approx(0.1 * 49)


def test_least_loaded_waits_less_than_round_robin_where_requests_differ():
    rng = np.random.default_rng(0)
    sizes = np.where(rng.random(2000) < 0.1, 400, 10)
    arrivals = Arrivals(np.cumsum(rng.exponential(0.13, 2000)), sizes, np.full(2000, 2), "mixed")
    pool = PoolSpec(4, ConstantStep(0.1, 4), Limits(32, 8, 10_000))
    mean = {name: serve(arrivals, pool, scheduler=name).ttft_s.mean() for name in ("round-robin", "least-loaded")}
    assert mean["least-loaded"] < 0.9 * mean["round-robin"]


def test_a_lost_rank_gives_its_requests_to_others_and_a_pause_holds_all_up():
    arrivals = gamma(50, 400, cv=2, prompt=20, output=20, seed=3)
    pool = PoolSpec(4, ConstantStep(0.05, 4), Limits(256, 32, 10_000))
    change = Change(2.0, pause_s=5.0, lost=[1])
    whole, hurt = serve(arrivals, pool), serve(arrivals, pool, changes=[change])
    assert hurt.finished.all()
    assert hurt.recomputed.sum() > 0
    assert whole.recomputed.sum() == 0
    ends = hurt.steps["all"]["end_s"]
    assert not ((ends > 2.06) & (ends < 7.0)).any()
    assert hurt.busy_s["all"][1] < whole.busy_s["all"][1]
    assert hurt.goodput < whole.goodput


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    trace = router(SPEC, 6000, seed=3, request_tokens=60, decode=0.4)
    cluster = Cluster.preset("h100-4x8-rail").restrict([0, 1, 2, 3, 8, 9, 10, 11])
    experts = np.stack([np.random.default_rng(layer).permutation(16).reshape(8, 2) for layer in range(12)])
    return {
        "trace": trace, "cluster": cluster, "placement": Placement(experts, 16),
        "costs": Costs.default(SPEC, cluster, decode=True),
    }  # fmt: skip


def served(world: dict[str, Any], arrivals: Arrivals, scheduler: str = "least-loaded", **how: Any) -> ServingReport:
    source = TokenSource(world["trace"], len(arrivals), seed=0)
    model = ClosedForm(source, world["cluster"], world["placement"], "nearest", world["costs"], **how)
    affinity = Affinity(source, world["placement"], np.asarray(world["cluster"].node))
    return serve(arrivals, PoolSpec(8, model, Limits(512, 64, 50_000), affinity), scheduler=scheduler)


def test_shared_prices_are_those_of_every_step(world: dict[str, Any]):
    arrivals = gamma(60, 150, cv=1.5, prompt=200, output=40, seed=2)
    exact, shared = served(world, arrivals, exact=True), served(world, arrivals)
    assert shared.tpot_s.mean() == pytest.approx(exact.tpot_s.mean(), rel=0.02)
    assert shared.ttft_s.mean() == pytest.approx(exact.ttft_s.mean(), rel=0.04)
    assert shared.utilisation["all"].mean() == pytest.approx(exact.utilisation["all"].mean(), rel=0.04)


def test_a_step_of_one_phase_costs_what_the_simulator_says(world: dict[str, Any]):
    from moesim.simulate import simulate
    from moesim.trace import make_batches

    batches = make_batches(world["trace"], 8, tokens_per_rank=32, phase="decode", max_steps=1)
    report = simulate(batches, world["cluster"], world["placement"], costs=world["costs"], policy="nearest")
    arrivals = Arrivals(np.zeros(256), np.full(256, 16), np.full(256, 2), "one batch")
    run = served(world, arrivals, exact=True)
    decode = run.steps["all"][run.steps["all"]["prefill"] == 0]
    assert decode["decode"].tolist() == [256]
    # other tokens of the same traffic, and shorter contexts
    assert decode["step_s"][0] == pytest.approx(report.step_s[0], rel=0.05)


def test_more_layers_take_longer_in_proportion(world: dict[str, Any]):
    arrivals = poisson(5, 30, prompt=100, output=20)
    once, twice = served(world, arrivals, exact=True), served(world, arrivals, exact=True, layers=24)
    assert twice.steps["all"]["step_s"].mean() == pytest.approx(2 * once.steps["all"]["step_s"].mean(), rel=0.05)


def test_answers_beside_prompts_read_their_cache_in_dense_layers_as_in_the_others(world: dict[str, Any]):
    source = TokenSource(world["trace"], 16, seed=0)
    deeper = replace(SPEC, num_hidden_layers=SPEC.num_hidden_layers + 4)
    few, many = (
        ClosedForm(source, world["cluster"], world["placement"], "nearest", world["costs"], model=model, exact=True)
        for model in (SPEC, deeper)
    )

    def dense_s(before: int) -> float:
        """Return what four dense layers add to a step of an answer and a chunk of a prompt on every rank."""
        every = np.arange(8)
        batch = StepBatch(
            request=np.arange(16), home=np.r_[every, every], start=np.zeros(16, np.int64), count=np.repeat([1, 32], 8),
            before=np.repeat([before, 0], 8), answer=np.repeat([True, False], 8),
        )  # fmt: skip
        return float(many(batch)[0] - few(batch)[0])

    costs, one = world["costs"], np.ones(8)
    read = costs.attention_s(one, one * 100_001, True) - costs.attention_s(one, one, True)
    assert dense_s(100_000) - dense_s(0) == pytest.approx(4 * float(read.max()))


def test_affinity_sends_a_request_where_its_experts_are(world: dict[str, Any]):
    arrivals = poisson(40, 200, prompt=50, output=10)
    source = TokenSource(world["trace"], 200, seed=0)
    affinity = Affinity(source, world["placement"], np.asarray(world["cluster"].node))
    near = {}
    for scheduler in ("round-robin", "expert-affinity"):
        pool = PoolSpec(8, ConstantStep(0.01, 8), Limits(512, 64, 50_000), affinity)
        chosen = []
        wrapped = SCHEDULERS.get(scheduler)
        SCHEDULERS._loaded["probe"] = lambda view, request, w=wrapped, c=chosen: c.append(w(view, request)) or c[-1]
        try:
            serve(arrivals, pool, scheduler="probe")
        finally:
            del SCHEDULERS._loaded["probe"]
        near[scheduler] = np.mean([affinity(request)[rank] for request, rank in enumerate(chosen)])
    assert near["expert-affinity"] > near["round-robin"] + 0.02
    assert any("predictor" in note for note in served(world, arrivals, "expert-affinity").notes)


def test_tokens_of_a_request_are_those_of_the_recorded_one(world: dict[str, Any]):
    trace = world["trace"]
    source = TokenSource(trace, 50, seed=4)
    one, two = np.array([3]), np.array([40])
    prompt = source.rows(one, np.array([0]), two, np.array([False]))
    answer = source.rows(one, np.array([0]), two, np.array([True]))
    assert len(set(trace.request[np.r_[prompt, answer]].tolist())) == 1
    assert set(trace.phase[prompt].tolist()) == {0}
    assert set(trace.phase[answer].tolist()) == {1}
    recorded = np.flatnonzero((trace.request == trace.request[prompt[0]]) & (trace.phase == 0))
    assert prompt[: len(recorded)].tolist() == recorded.tolist()
    assert prompt[len(recorded)] == recorded[0]


AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,C
45,GPT-4,10,0,10,A
"""
MOON = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0]}
{"timestamp": 2500, "input_length": 7, "output_length": 3, "hash_ids": []}
"""


@pytest.mark.parametrize(
    ("text", "at", "prompt", "output"),
    [
        (AZURE, [0, 4.314579], [374, 396], [44, 109]),
        (BURST, [0], [472], [18]),
        (MOON, [0, 2.5], [6758, 7], [500, 3]),
    ],
)
def test_request_traces_are_read(tmp_path: Path, text: str, at: list[float], prompt: list[int], output: list[int]):
    path = tmp_path / "requests"
    path.write_text(text)
    found = read_arrivals(path)
    np.testing.assert_allclose(found.at_s, at, atol=1e-6)
    assert found.prompt.tolist() == prompt
    assert found.output.tolist() == output
    assert bool(found.notes) == (text != AZURE)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (AZURE.replace("396", "many"), "line 3"),
        (AZURE.replace("GeneratedTokens", "Tokens"), "line 1"),
        (MOON.replace("2500", '"x"'), "line 2"),
        ("", "line 1"),
        (AZURE.split("\n", maxsplit=1)[0] + "\n", "holds no request"),
        (AZURE.replace("396", "396.5"), "line 3"),
        (AZURE.replace("396", "1e300"), "line 3"),
        (BURST.replace("472", "inf"), "line 2"),
        (MOON.replace("2500", "1e999"), "line 2"),
        (MOON.replace("2500", "1" + 400 * "0"), "line 2"),
        (MOON.replace("2500", 100_000 * "["), "line 2"),
        (AZURE.replace("396", 200_000 * "9"), "expected CSV: field larger|line 3"),
    ],
)
def test_a_broken_request_trace_names_its_line(tmp_path: Path, text: str, says: str):
    path = tmp_path / "requests"
    path.write_text(text)
    with pytest.raises(FormatError, match=says):
        read_arrivals(path)


@pytest.mark.skipif(not DATA.is_dir(), reason="the public request traces are not here")
def test_the_public_request_traces_are_read():
    azure = read_arrivals(DATA / "AzureLLMInferenceTrace_conv.csv")
    assert len(azure) == 19_366
    assert 3400 < azure.at_s[-1] < 3700
    mooncake = read_arrivals(DATA / "mooncake_conversation_trace.jsonl")
    assert len(mooncake) > 11_000
    assert mooncake.prompt.mean() > 5_000


def test_a_gamma_process_has_its_rate_and_burstiness():
    gaps = np.diff(gamma(4.0, 50_000, cv=2.0, seed=1).at_s)
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.04)
    assert poisson(4.0, 100, seed=2).digest == gamma(4.0, 100, cv=1.0, seed=2).digest


def test_what_cannot_be_is_refused(world: dict[str, Any]):
    arrivals = poisson(1, 3)
    pool = PoolSpec(1, ConstantStep(1.0))
    with pytest.raises(UnknownName, match="did you mean 'least-loaded'"):
        serve(arrivals, pool, scheduler="least-load")
    with pytest.raises(InputError, match="seed: expected a whole number from 0 up, got -1"):
        poisson(1, 3, seed=-1)
    with pytest.raises(InputError, match="pool 'decode'"):
        serve(arrivals, pool, changes=[Change(1.0, pool="decode")])
    for rank in (1, -1):
        with pytest.raises(InputError, match=f"rank {rank} cannot be lost; pool all has ranks 0 to 0"):
            serve(arrivals, pool, changes=[Change(0.1, lost=[rank])])
    with pytest.raises(InputError, match=r"Change\.at_s: expected seconds from 0 up, got -1"):
        Change(-1.0)
    with pytest.raises(InputError, match="until_s: expected seconds above 0"):
        serve(arrivals, pool, until_s=0.0)
    with pytest.raises(InputError, match="no rank of pool all is left"):
        serve(arrivals, pool, changes=[Change(0.1, lost=[0])])
    with pytest.raises(InputError, match="at least 1"):
        Limits(tokens=0)
    with pytest.raises(InputError, match="plan for these"):
        ClosedForm(TokenSource(world["trace"], 3), world["cluster"].restrict([0, 1]), world["placement"], "nearest",
                   world["costs"])  # fmt: skip


def test_the_same_seed_gives_the_same_run(world: dict[str, Any]):
    arrivals = poisson(30, 60, prompt=100, output=20)
    assert served(world, arrivals).to_dict() == served(world, arrivals).to_dict()
