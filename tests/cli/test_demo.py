"""The demo: plan, judge, report, and files that other tools open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import moesim
from moesim.cli.demo import FIT, HELD_OUT
from moesim.placement import Placement
from moesim.solve import Plan
from moesim.spec import ModelSpec
from moesim.trace import Trace
from moesim.trace.synthetic import router

from .conftest import Run

SPEC = ModelSpec(
    name="stand-in", layer_ids=(0, 1), num_hidden_layers=2, experts=64, top_k=4, hidden=256, intermediate=64,
    shared_experts=1, shared_intermediate=64,
)  # fmt: skip
FILES = {"report.html", "plan.json", "sglang.json", "timeline.json"}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small traces where the bundled ones would be."""
    traces = tmp_path / "checkout" / "traces"
    traces.mkdir(parents=True)
    router(SPEC, 9000, seed=1, request_tokens=60).write(traces / FIT)
    router(SPEC, 9000, seed=1, request_tokens=50).write(traces / HELD_OUT)
    monkeypatch.setattr(moesim, "__file__", str(traces.parent / "moesim" / "__init__.py"))
    return traces


def test_the_demo_writes_what_it_promises(stand_in: Path, run: Run, tmp_path: Path):
    out = tmp_path / "out"
    done = run("demo", "-o", out, "--tokens-per-rank", 64, "--deadline", 4, "--json")
    found = done.json
    assert {path.name for path in out.iterdir()} == FILES
    assert all(f"wrote {out / name}" in done.err for name in FILES)
    assert found["topology"]["ranks"] == 32
    assert found["settings"]["slots_per_rank"] == 3
    assert found["settings"]["model"] == "stand-in @ deepseek-v3"
    assert {row["solver"] for row in found["rows"]} | {entry["solver"] for entry in found["not_run"]} == {
        "contiguous", "round-robin", "lpt", "snake", "eplb", "eplb-hierarchical", "moesim",
    }  # fmt: skip

    plan = Plan.read(out / "plan.json")
    assert plan.solver == found["best"]
    assert Placement.read(out / "sglang.json", "sglang", ranks=32, spec=SPEC) == plan.placement
    assert json.loads((out / "timeline.json").read_text())["traceEvents"]

    page = (out / "report.html").read_text(encoding="utf-8")
    assert "moesim compare" in page
    assert f"moesim simulate {stand_in / HELD_OUT}" in page

    best = next(row for row in found["rows"] if row["solver"] == found["best"])
    again = run(
        "simulate", stand_in / HELD_OUT, "--plan", out / "plan.json", "-t", "h100-4x8-rail", "--dims", "deepseek-v3",
        "--phase", "prefill", "--tokens-per-rank", 64, "--json",
    ).json  # fmt: skip
    for key in ("step_s", "all_to_all_s", "compute_s", "imbalance", "batch_imbalance", "cross_node_bytes", "gap"):
        assert again[key] == best[key], key


@pytest.mark.slow
def test_on_the_bundled_trace_ours_is_the_fastest_of_all_solvers(root: Path, run: Run, tmp_path: Path):
    if not (root / "traces" / HELD_OUT).is_file():
        pytest.skip(f"traces/{HELD_OUT} is not in this checkout")
    found = run("demo", "-o", tmp_path / "out", "--json").json
    assert found["best"] == "moesim"
    assert not found["trace"]["synthetic"]
    held_out = Trace.read(root / "traces" / HELD_OUT)
    assert found["trace"]["held_out_digest"] == held_out.digest
