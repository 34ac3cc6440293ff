"""How fast sweeps and serving runs are: points a second by workers, simulated requests a second."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.simulate.serving import ClosedForm, Limits, PoolSpec, TokenSource, poisson, read_arrivals, serve
from moesim.solve import solve
from moesim.spec import ModelSpec
from moesim.study.sweep import read_study, sweep
from moesim.trace import make_batches
from moesim.trace.synthetic import router

pytestmark = pytest.mark.bench
ROOT = Path(__file__).parents[2]
AZURE = ROOT.parent / "shared" / "data" / "requests" / "AzureLLMInferenceTrace_conv.csv"


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_points_a_second_by_workers(tmp_path: Path, runner: str):
    if runner == "ray":
        pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    study = read_study(ROOT / "tests" / "study" / "grid-540.toml", smoke=True)
    sweep(study, tmp_path / "warm", jobs=1)  # compiles
    for jobs in (1, 2, 4):
        begin = time.perf_counter()
        found = sweep(study, tmp_path / f"{runner}{jobs}", runner=runner, jobs=jobs)
        seconds = time.perf_counter() - begin
        print(
            f"\n{runner}, {jobs} workers: {found.computed} points in {seconds:.1f} s, {found.computed / seconds:.1f}/s"
        )


def test_an_hour_of_requests_on_64_gpus():
    spec, cluster = ModelSpec.preset("deepseek-v3"), Cluster.preset("h100-8x8-rail")
    trace = router(spec, 12_000, seed=1, request_tokens=300, decode=0.3)
    costs = Costs.default(spec, cluster, decode=True)
    batches = make_batches(trace, 64, tokens_per_rank=32, phase="decode")
    plan = solve(batches, cluster, slots_per_rank=5, solver="eplb", costs=costs)
    arrivals = read_arrivals(AZURE) if AZURE.is_file() else poisson(5.4, 19_366, prompt=1154, output=211)
    source = TokenSource(trace, len(arrivals), 0)
    model = ClosedForm(source, cluster, plan.placement, "nearest", costs, model=spec)
    cpu, wall = time.process_time(), time.perf_counter()
    report = serve(arrivals, PoolSpec(64, model, Limits()), facts={"model": spec.name, "topology": cluster.name})
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    steps = len(report.steps["all"])
    print(f"\n{report.summary()}\n{len(arrivals)} requests, {steps} steps, {model.priced} priced")
    print(f"{cpu:.0f} s CPU, {wall:.0f} s; {len(arrivals) / cpu:.0f} requests/s of CPU")
    assert report.finished.all()
