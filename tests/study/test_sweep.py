"""Sweeps: nothing computed twice, nothing lost, the same table to the byte however it was made."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.base.errors import FormatError, InputError
from moesim.spec import ModelSpec
from moesim.study.sweep import KINDS, failure, front, read_study, step, sweep
from moesim.study.sweep.runners import local
from moesim.study.sweep.store import Store
from moesim.study_report import _axis, study_html
from moesim.trace import formats
from moesim.trace.formats import read_any
from moesim.trace.synthetic import lognormal

HERE = Path(__file__).parent
LITTLE = ModelSpec(
    name="little", layer_ids=(0, 1), num_hidden_layers=2, experts=16, top_k=2, hidden=512, intermediate=256
)
STUDY = """
[study]
name = "little"
question = "does it resume?"
pareto = [{x = "step_s", y = "tokens_per_s_per_gpu", y_goal = "max", by = "solver"}]
[settings]
trace = "little.parquet"
topology = "h100-4x8-rail"
steps = 1
[axes]
solver = ["contiguous", "eplb"]
ranks = [4, 8, 16]
"set.tier.rail.bandwidth" = ["25 GB/s", "50 GB/s"]
[[together]]
tokens_per_rank = [16, 32]
slots = ["+0", "+1"]
[smoke.axes]
ranks = [8]
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    lognormal(LITTLE, 4000, seed=1).write(tmp_path / "little.parquet")
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def table_bytes(folder: Path) -> str:
    return hashlib.sha256((folder / "table.parquet").read_bytes()).hexdigest()


def test_the_grid_is_every_combination_and_linked_axes_move_together(study: Path):
    points = read_study(study).points
    assert len(points) == 2 * 3 * 2 * 2
    assert {(p["tokens_per_rank"], p["slots"]) for p in points} == {(16, "+0"), (32, "+1")}
    assert len({json.dumps(p, sort_keys=True) for p in points}) == len(points)
    assert {p["ranks"] for p in read_study(study, smoke=True).points} == {8}


def test_rows_hold_what_was_asked_and_the_front_is_in_the_report(study: Path, tmp_path: Path):
    found = sweep(read_study(study, smoke=True), tmp_path / "out", jobs=1)
    table = pq.read_table(found.table).to_pylist()
    assert [row["point"] for row in table] == list(range(8))
    assert all(row["status"] == "done" and row["gpus"] == 8 and row["step_s"] > 0 for row in table)
    assert all("wall_s" not in row for row in table)
    text = study_html(found, commands=["moesim sweep study.toml"])
    assert "Pareto front" in text
    assert "moesim sweep study.toml" in text


def test_notes_of_points_are_whole_and_told_once(study: Path, tmp_path: Path):
    found = sweep(read_study(study, smoke=True), tmp_path / "out", jobs=1)
    rows = [
        row | {"notes": f"swapped {n} times; nothing lost\nleft out: host time"} for n, row in enumerate(found.rows)
    ]
    text = study_html(dataclasses.replace(found, rows=rows))
    assert "<li>swapped 0 times; nothing lost (8 points, numbers of the first)</li>" in text
    assert "<li>left out: host time (8 points)</li>" in text
    assert text.count("<li>") == 2
    # and rows hold a note a line
    made = str(found.rows[0]["notes"]).splitlines()
    assert len(made) > 1
    assert not any(line.startswith(" ") for line in made)


@pytest.mark.parametrize(
    ("column", "values", "shown", "title"),
    [
        ("step_s", [0.002, math.nan], [2.0, math.nan], "step (ms)"),
        ("mean_tpot_s", [4e-6], [4.0], "mean tpot (us)"),
        ("all_to_all_s", [0.0, 0.0], [0e0, 0e0], "all to all (us)"),
        ("tokens_per_s_per_gpu", [8000.0], [8000.0], "tokens a GPU (1/s)"),
        ("expert_bytes_per_gpu", [1e9, 5e8], [1.0, 0.5], "expert bytes a GPU (GB)"),
        ("saved_share", [-0.25], [-25.0], "saved (%)"),
        ("batch_imbalance", [1.2], [1.2], "batch imbalance"),
    ],
)
def test_axes_of_a_study_have_units_that_suit_their_values(
    column: str, values: list[float], shown: list[float], title: str
):
    numbers, words = _axis(column, values)
    assert numbers == pytest.approx(shown, nan_ok=True)
    assert words == title


def test_a_sweep_goes_on_where_it_was_stopped(study: Path, tmp_path: Path):
    asked = read_study(study)
    whole = sweep(asked, tmp_path / "whole", jobs=1)
    # half of the rows are there, as a killed run leaves them; a temporary file of a row that was being written too
    first = sweep(asked, tmp_path / "part", jobs=1)
    rows = sorted((tmp_path / "part" / "rows").glob("*.parquet"))
    for path in rows[::2]:
        path.unlink()
    (tmp_path / "part" / "table.parquet").unlink()
    (tmp_path / "part" / "rows" / ".half.parquet.x1").write_bytes(b"PAR1")
    kept = {path: path.stat().st_mtime_ns for path in rows[1::2]}
    again = sweep(asked, tmp_path / "part", jobs=1)
    assert (first.computed, again.computed, again.found) == (24, 12, 12)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert table_bytes(tmp_path / "part") == table_bytes(tmp_path / "whole")
    assert whole.rows == again.rows


def test_processes_give_the_same_table_as_one(study: Path, tmp_path: Path):
    asked = read_study(study, smoke=True)
    sweep(asked, tmp_path / "one", jobs=1)
    seen: list[tuple[int, int]] = []
    sweep(asked, tmp_path / "two", jobs=2, progress=lambda done, total: seen.append((done, total)))
    assert table_bytes(tmp_path / "one") == table_bytes(tmp_path / "two")
    assert seen[0] == (0, 8)
    assert seen[-1] == (8, 8)


def whose_memory(_task: int, shared: Mapping[str, Any]) -> bool:
    base: Any = shared["trace"].routes
    while base is not None and not isinstance(base, np.memmap):
        base = base.base if isinstance(base, np.ndarray) else None
    return base is not None and not shared["trace"].routes.flags.writeable


def test_processes_map_the_trace_instead_of_copying_it():
    trace = lognormal(ModelSpec.preset("olmoe-1b-7b"), 8000, seed=2)
    assert trace.routes is not None
    assert trace.routes.nbytes > 1_000_000
    assert list(local(whose_memory, [1, 2, 3], {"trace": trace}, jobs=2)) == [True] * 3


def blocked_signals(_task: int, _shared: Mapping[str, Any]) -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, []))


def test_an_interruption_is_the_business_of_the_first_process_alone():
    """A terminal sends Ctrl-C to all: processes that are still starting would answer with tracebacks."""
    before = blocked_signals(0, {})
    assert all(signal.SIGINT in found for found in local(blocked_signals, [1, 2, 3], {}, jobs=2))
    assert blocked_signals(0, {}) == before


def test_a_killed_sweep_resumes_to_the_same_bytes(study: Path, tmp_path: Path):
    killed_and_resumed(study, tmp_path, after=6, points=24)


@pytest.mark.slow
def test_540_points_killed_midway_resume_to_the_same_bytes(tmp_path: Path):
    killed_and_resumed(HERE / "grid-540.toml", tmp_path, after=200, points=540)


def killed_and_resumed(study: Path, tmp_path: Path, *, after: int, points: int) -> None:
    """Kill a sweep and all its processes with SIGKILL when some rows are there; resume; compare with one run."""
    command = [sys.executable, "-m", "moesim", "sweep", str(study), "--jobs", "2", "-o"]
    with subprocess.Popen([*command, str(tmp_path / "cut")], start_new_session=True, stderr=subprocess.DEVNULL) as run:
        rows = tmp_path / "cut" / "rows"
        while run.poll() is None and (not rows.is_dir() or len(list(rows.glob("*.parquet"))) < after):
            time.sleep(0.02)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    there = {path: path.stat().st_mtime_ns for path in rows.glob("[!.]*.parquet")}
    assert after <= len(there) < points
    assert not (tmp_path / "cut" / "table.parquet").exists()
    data = json.loads(
        subprocess.run([*command, str(tmp_path / "cut"), "--json"], check=True, capture_output=True).stdout
    )
    assert data["resumed"] == len(there)
    assert data["computed"] == points - len(there)
    assert {path: path.stat().st_mtime_ns for path in there} == there
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    assert table_bytes(tmp_path / "cut") == table_bytes(tmp_path / "whole")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra ray)")
def test_two_workers_of_ray_give_the_same_table(study: Path, tmp_path: Path):
    # a process of its own: Ray leaves warnings and threads behind
    command = [sys.executable, "-m", "moesim", "sweep", str(study), "--jobs", "2", "-o"]
    subprocess.run([*command, str(tmp_path / "ray"), "--runner", "ray"], check=True, capture_output=True)
    sweep(read_study(study), tmp_path / "local", jobs=1)
    assert table_bytes(tmp_path / "ray") == table_bytes(tmp_path / "local")


def test_a_changed_trace_is_computed_again(study: Path, tmp_path: Path):
    asked = read_study(study, smoke=True)
    sweep(asked, tmp_path / "out", jobs=1)
    lognormal(LITTLE, 4000, seed=9).write(tmp_path / "little.parquet")
    assert sweep(asked, tmp_path / "out", jobs=1).computed == 8


def test_what_cannot_run_is_a_row_and_not_an_end(study: Path, tmp_path: Path):
    study.write_text(STUDY.replace('slots = ["+0", "+1"]', "slots = [1, 2]").replace("ranks = [8]", "ranks = [4, 8]"))
    found = sweep(read_study(study, smoke=True), tmp_path / "out", jobs=1)
    status = {(row["ranks"], row["slots"]): row["status"] for row in found.rows}
    assert status[8, 2] == "done"
    assert status[8, 1].startswith("infeasible: slots: 8 ranks of 1 slot can hold 8 experts")


def test_figures_of_the_whole_model_are_those_of_a_simulation(tmp_path: Path):
    deeper = dataclasses.replace(LITTLE, layer_ids=(1, 2), num_hidden_layers=3)
    lognormal(deeper, 4000, seed=1).write(tmp_path / "little.parquet")
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    row = sweep(read_study(path, smoke=True), tmp_path / "out", jobs=1).rows[0]
    # a dense layer and the head come on top of the MoE layers that the trace holds
    assert row["model_step_s"] > row["step_s"]
    whole = row["tokens_per_step"] / row["model_step_s"] / row["gpus"]
    assert row["tokens_per_s_per_gpu"] == pytest.approx(whole)


def test_notes_say_whether_they_are_of_fitted_or_of_held_out_steps(study: Path, tmp_path: Path):
    study.write_text(STUDY.replace("steps = 1\n", ""))
    row = sweep(read_study(study, smoke=True), tmp_path / "out", jobs=1).rows[0]
    # the fitted part fills its steps to the last token
    (dropped,) = [note for note in row["notes"].splitlines() if "dropped" in note]
    assert dropped.startswith("held-out steps dropped: ")


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (("solver = [", "solvr = ["), FormatError, "did you mean 'solver'"),
        (('"contiguous"', '"contigous"'), FormatError, "did you mean 'contiguous'"),
        (("ranks = [4, 8, 16]", "ranks = []"), FormatError, "axes.ranks"),
        (("slots = [", "slots = ['+2', "), FormatError, "together[0]"),
        (("steps = 1", "steps = 1\nranks = 3"), FormatError, "stands twice"),
        (("[axes]", "[axes"), FormatError, "expected TOML"),
        (("[axes]", f"deep = {9000 * '['}"), FormatError, "expected TOML"),
        (("little.parquet", "nowhere.parquet"), InputError, "nowhere.parquet"),
        (('name = "little"', 'name = "little"\nkind = "sted"'), FormatError, "did you mean 'step'"),
        (("steps = 1", "steps = 'one'"), InputError, "steps"),
        (("steps = 1", "steps = 1\nphase = 'decoding'"), FormatError, "phase"),
        (("steps = 1", "steps = 0"), FormatError, "steps: expected at least 1, got 0"),
        (("tokens_per_rank = [16", "tokens_per_rank = [0"), FormatError, "tokens_per_rank: expected at least 1, got 0"),
        (('"+0", "+1"', "0, 1"), FormatError, "slots: expected 1 or more"),
        (('"+1"', '"+²"'), FormatError, "slots: expected 1 or more"),
        (("steps = 1", "steps = 1.5"), FormatError, "steps: expected a whole number, found 1.5"),
        (("steps = 1", "fit = 1.0"), FormatError, "fit: expected a fraction between 0 and 1, got 1.0"),
        (("steps = 1", "fit_phase = 'prefil'"), FormatError, "did you mean 'prefill'"),
        (("steps = 1", "engine = 'evnts'"), FormatError, "did you mean 'events'"),
        (
            ('topology = "h100-4x8-rail"', 'topology = "h100-4x8-rial"'),
            FormatError,
            "study.toml: topology: unknown topology",
        ),
        (("question =", "questoin ="), FormatError, "study.questoin: unknown key 'questoin': did you mean 'question'"),
        (
            ('y_goal = "max"', 'y_goal = "up"'),
            FormatError,
            "study.pareto[0].y_goal: expected 'min' or 'max', found 'up'",
        ),
        (('name = "little"', ""), FormatError, "study.name: missing; add it"),
        (("ranks = [8]", "ranks = 8"), FormatError, "smoke.axes.ranks: expected a list, found 8"),
        (("solver = [", "status = ["), FormatError, "status: every table has a column of that name"),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_anything_runs(study, tmp_path, change, kind, says):
    study.write_text(STUDY.replace(*change))
    with pytest.raises(kind, match=says.replace("[", r"\[")):
        sweep(read_study(study), tmp_path / "out", jobs=1)
    assert not list((tmp_path / "out").glob("rows/*"))


@pytest.mark.parametrize("kind", KINDS.names())
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            ("pareto =", 'columns = ["p99_step_ms"]\npareto ='),
            "study.columns: unknown column 'p99_step_ms': did you mean",
        ),
        (('y = "tokens', 'y = "tokns'), r"study.pareto\[0\].y: unknown column 'tokns_per_s_per_gpu'"),
        (('by = "solver"', 'by = "solvr"'), r"study.pareto\[0\].by: unknown column 'solvr': did you mean 'solver'"),
    ],
)
def test_a_study_that_shows_what_no_point_has_is_told_so_before_anything_runs(study, tmp_path, kind, change, says):
    x, y = {"step": ("step_s", "tokens_per_s_per_gpu")}.get(kind, KINDS.get(kind).COLUMNS[:2])
    asked = STUDY.replace('name = "little"', f'name = "little"\nkind = "{kind}"').replace(*change)
    study.write_text(asked.replace('"step_s"', f'"{x}"').replace('"tokens_per_s_per_gpu"', f'"{y}"'))
    with pytest.raises(FormatError, match=says):
        sweep(read_study(study), tmp_path / "out", jobs=1)
    assert not (tmp_path / "out").exists()


def test_a_serving_run_has_no_single_phase(study: Path, tmp_path: Path):
    study.write_text(
        STUDY.replace('name = "little"', 'name = "little"\nkind = "serve"').replace("steps = 1", "phase = 'decode'")
    )
    with pytest.raises(FormatError, match="phase: prompts are prefilled"):
        sweep(read_study(study), tmp_path / "out", jobs=1)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30), st.booleans())
def test_a_point_is_on_the_front_if_no_other_is_better(points, larger):
    x, y = np.array(points, dtype=float).T
    goal = "max" if larger else "min"
    kept = front(x, y, "min", goal).tolist()
    sign = -1 if larger else 1

    def beaten(i: int) -> bool:
        return any(
            x[j] <= x[i] and sign * y[j] <= sign * y[i] and (x[j] < x[i] or y[j] != y[i]) for j in range(len(points))
        )

    assert {points[i] for i in range(len(points)) if not beaten(i)} == {points[i] for i in kept}
    assert len({points[i] for i in kept}) == len(kept)
    assert kept == sorted(kept, key=lambda i: x[i])


@pytest.mark.parametrize("hidden", ["ranks", "seed", "status"])
def test_a_kind_whose_results_would_hide_settings_is_refused(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
):
    """`ranks` varies, `seed` is the same for all points, `status` is a column of every table."""
    study.write_text(STUDY.replace("steps = 1", "steps = 1\nseed = 3"))
    asked = read_study(study, smoke=True)
    sweep(asked, tmp_path / "before", jobs=1)
    found = step.run
    monkeypatch.setattr(step, "run", lambda *given: {**found(*given), hidden: 1})
    with pytest.raises(InputError, match=rf"8 of 8 points broke.*named like a setting \({hidden}\)"):
        sweep(asked, tmp_path / "out", jobs=1)
    assert not (tmp_path / "out" / "table.parquet").exists()


def test_a_row_from_disk_that_would_hide_a_setting_is_refused(study: Path, tmp_path: Path):
    asked = read_study(study, smoke=True)
    sweep(asked, tmp_path / "out", jobs=1)
    path = next((tmp_path / "out" / "rows").glob("*.parquet"))
    store = Store(tmp_path / "out")
    row, wall_s = store.read(path.stem)
    store.write(path.stem, {**row, "ranks": 1}, wall_s)
    with pytest.raises(InputError, match=r"named like a setting \(ranks\).*delete it and run again"):
        sweep(asked, tmp_path / "out", jobs=1)


def test_the_trace_of_all_points_is_read_once(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reads = []
    monkeypatch.setattr(formats, "read_any", lambda *args, **options: reads.append(args) or read_any(*args, **options))
    sweep(read_study(study, smoke=True), tmp_path / "out", jobs=1)
    assert len(reads) == 1


def test_files_of_a_study_count_from_it_and_are_read_anew(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shape = {
        "model_type": "mixtral", "hidden_size": 512, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_local_experts": 16, "num_experts_per_tok": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 1000,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    study.write_text(STUDY.replace("steps = 1", 'steps = 1\ndims = "config.json"'))
    monkeypatch.chdir(tmp_path.parent)
    asked = read_study(study, smoke=True)
    small = sweep(asked, tmp_path / "out", jobs=1)
    assert sweep(asked, tmp_path / "out", jobs=1).computed == 0
    (tmp_path / "config.json").write_text(json.dumps(shape | {"intermediate_size": 2048}))
    wide = sweep(asked, tmp_path / "out", jobs=1)
    assert wide.computed == small.computed == len(asked.points)
    assert all(after["compute_s"] > before["compute_s"] for before, after in zip(small.rows, wide.rows, strict=True))


@pytest.mark.parametrize("kind", ["step", "moe-dense"])
def test_other_traffic_to_judge_on(study: Path, tmp_path: Path, kind: str):
    lognormal(LITTLE, 4000, seed=2).write(tmp_path / "other.parquet")
    asked = STUDY.replace("[study]", f'[study]\nkind = "{kind}"').replace("steps = 1", 'steps = 1\nheld_out = "H"')
    if kind == "moe-dense":
        asked = asked.replace("[axes]", '[axes]\narchitecture = ["moe", "dense"]')
    for file, status in (("other", "done"), ("little", "cannot run: the held-out trace is the fit trace itself")):
        study.write_text(asked.replace('"H"', f'"{file}.parquet"'))
        rows = sweep(read_study(study, smoke=True), tmp_path / file, jobs=1).rows
        assert all(row["status"].startswith(status) for row in rows)


def test_weights_of_both_models_hold_their_shared_experts(study: Path, tmp_path: Path):
    spec = dataclasses.replace(LITTLE, shared_experts=1, shared_intermediate=512)
    lognormal(spec, 4000, seed=1).write(tmp_path / "little.parquet")
    asked = STUDY.replace("[study]", '[study]\nkind = "moe-dense"').replace('["+0", "+1"]', "[2, 2]")
    study.write_text(asked.replace("[axes]", '[axes]\narchitecture = ["moe", "dense"]'))
    rows = sweep(read_study(study, smoke=True), tmp_path / "out", jobs=1).rows
    # with as many slots as a token has picks, a rank of the MoE holds what the dense block is made of
    assert {row["architecture"] for row in rows} == {"moe", "dense"}
    each = 3 * spec.hidden * spec.weight_bytes
    assert {row["weight_bytes_per_gpu"] for row in rows} == {2 * each * (2 * spec.intermediate + 512)}


def test_a_failure_of_what_there_is_not_is_told_before_a_plan_is_searched(study: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(failure, "solve", lambda *_, **__: pytest.fail("planned for nothing"))
    asked = STUDY.replace("[study]", '[study]\nkind = "failure"').replace("steps = 1", 'steps = 1\nfailure = "node9"')
    study.write_text(asked.replace("pareto = ", "#"))
    rows = sweep(read_study(study, smoke=True), tmp_path / "out", jobs=1).rows
    assert all(row["status"].startswith("cannot run: failure of node9: h100-4x8-rail has no such") for row in rows)


def test_ranks_that_serve_prompts_leave_some_for_answers(study: Path, tmp_path: Path):
    asked = STUDY.replace("[study]", '[study]\nkind = "serve"').replace("steps = 1", "prefill_ranks = 8\nkv_tokens = 9")
    study.write_text(asked.replace("pareto = ", "#"))
    rows = sweep(read_study(study, smoke=True), tmp_path / "out", jobs=1).rows
    assert {row["status"] for row in rows} == {"cannot run: prefill_ranks: expected 0 to 7 of 8 ranks, got 8"}
