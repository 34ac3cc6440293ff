"""What a user gets wrong ends in one line that says what to do, and in no half-written file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from .conftest import Result, Run


def refused(done: Result, code: int, *words: str) -> None:
    assert done.code == code
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if not line.startswith("[")]  # progress begins with a bracket
    assert len(lines) == 1, done.err
    assert lines[0].startswith("moesim: ")
    for word in words:
        assert word in lines[0]


@pytest.fixture
def outputs(tmp_path: Path):
    """A folder that must stay empty."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder
    assert not list(folder.iterdir())


def test_a_truncated_parquet(trace_file: Path, setting: list[str], run: Run, outputs: Path, tmp_path: Path):
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(trace_file.read_bytes()[:2000])
    for option in ([], ["--format", "parquet"]):
        done = run("solve", cut, *setting, *option, "-o", outputs / "plan.json")
        refused(done, 1, str(cut))
    refused(run("import", cut, "-o", outputs / "t.parquet"), 1, str(cut))
    refused(run("inspect", cut), 1, str(cut))


def test_a_missing_trace(setting: list[str], run: Run, outputs: Path):
    refused(run("solve", "no.parquet", *setting, "-o", outputs / "plan.json"), 1, "no.parquet", "no such file")


def test_a_bare_number_in_a_topology(root: Path, trace_file: Path, run: Run, outputs: Path, tmp_path: Path):
    text = (root / "topologies" / "h100-4x8-rail.toml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("bandwidth"))
    bad = tmp_path / "bad.toml"
    bad.write_text(text.replace(line, "bandwidth = 450", 1))
    refused(run("inspect", bad), 1, str(bad), "450", "GB/s")
    refused(run("solve", trace_file, "-t", bad, "-o", outputs / "plan.json"), 1, str(bad))


def test_a_topology_whose_ranks_are_not_connected(run: Run, tmp_path: Path, root: Path):
    text = (root / "topologies" / "h100-1x8.toml").read_text()
    cut = tmp_path / "cut.toml"
    cut.write_text('without = ["node0.switch"]\n' + text)
    refused(run("inspect", cut), 1, "cut.toml")


@pytest.mark.parametrize(
    ("option", "name", "nearest"),
    [("--solver", "contigous", "contiguous"), ("--policy", "neerest", "nearest"), ("--network", "maxmin", "max-min"),
     ("--transport", "hierachical", "hierarchical"), ("--dims", "deepseek-v33", "deepseek-v3"),
     ("--phase", "prefil", "prefill")],
)  # fmt: skip
def test_an_unknown_name(
    option: str, name: str, nearest: str, trace_file: Path, setting: list[str], run: Run, outputs: Path
):
    for verb in ("solve", "compare"):
        done = run(verb, trace_file, *setting, option, name, "-o", outputs / "result")
        refused(done, 1, name, f"did you mean {nearest!r}?")


def test_an_unknown_name_among_known_ones_stops_before_any_work(trace_file: Path, setting: list[str], run: Run):
    done = run("compare", trace_file, *setting, "--solver", "contiguous,lptt")
    refused(done, 1, "lptt", "lpt")
    assert "planning" not in done.err


def test_slots_that_do_not_hold_all_experts(trace_file: Path, setting: list[str], run: Run, outputs: Path):
    for verb in ("solve", "compare"):
        done = run(verb, trace_file, *setting, "--slots-per-rank", 1, "-o", outputs / "result")
        refused(done, 3, "slots")


@pytest.mark.parametrize("option", ["--slots-per-rank", "--tokens-per-rank", "--steps", "--deadline", "--ranks"])
def test_zero_is_no_default(option: str, trace_file: Path, setting: list[str], run: Run, outputs: Path):
    done = run("solve", trace_file, *setting, option, 0, "-o", outputs / "plan.json")
    refused(done, 1, "0")


def test_a_fraction_that_would_change_nothing_is_refused(trace_file: Path, setting: list[str], run: Run, outputs: Path):
    done = run("solve", trace_file, *setting, "--solver", "eplb", "--fit", 0.3, "-o", outputs / "plan.json")
    refused(done, 1, "--fit", "--part fit")


def test_a_negative_seed_is_a_usage_error(trace_file: Path, setting: list[str], run: Run):
    assert run("compare", trace_file, *setting, "--solver", "eplb", "--seed", "-1").code == 2
    assert run("capture", "bundled", "--seed", "-1").code == 2


def test_more_ranks_than_the_cluster_has(trace_file: Path, run: Run, outputs: Path):
    done = run("solve", trace_file, "-t", "h100-1x8", "--ranks", 9, "-o", outputs / "plan.json")
    refused(done, 1, "9 ranks", "8")


def test_an_expert_id_out_of_range(run: Run, outputs: Path, tmp_path: Path):
    routes = np.zeros((8, 24, 4), np.int16) + np.arange(4, dtype=np.int16)
    routes[5, 7, 2] = 32
    bad = tmp_path / "bad.npz"
    np.savez(bad, experts=routes)
    done = run("import", bad, "--model", "gpt-oss-20b", "-o", outputs / "trace.parquet")
    refused(done, 1, "token 5", "layer 7", "32")


def test_a_trace_without_its_model(run: Run, outputs: Path, tmp_path: Path):
    path = tmp_path / "trace.npz"
    np.savez(path, experts=np.zeros((8, 24, 4), np.int16) + np.arange(4, dtype=np.int16))
    refused(run("import", path, "-o", outputs / "trace.parquet"), 1, "model")


def test_an_option_that_is_no_pair_or_not_of_the_format(trace_file: Path, run: Run, outputs: Path):
    out = outputs / "t.parquet"
    refused(run("import", trace_file, "--format-option", "phase", "-o", out), 1, "KEY=VALUE")
    refused(run("import", trace_file, "--format-option", "colour=red", "-o", out), 1, "colour")


@pytest.mark.parametrize("text", ["{", '{"schema": "moesim-plan/1"}', '{"schema": "moesim-plan/9"}', "[]", ""])
def test_a_broken_plan(text: str, trace_file: Path, setting: list[str], run: Run, outputs: Path, tmp_path: Path):
    plan = tmp_path / "plan.json"
    plan.write_text(text)
    refused(run("simulate", trace_file, *setting, "--plan", plan, "--timeline", outputs / "t.json"), 1, str(plan))
    refused(run("inspect", plan), 1, str(plan))
    refused(run("export", plan, "--to", "sglang", "-o", outputs / "experts.json"), 1, str(plan))


def test_a_plan_of_another_model(trace_file: Path, setting: list[str], run: Run, tmp_path: Path):
    from moesim.placement import Placement

    plan = tmp_path / "placement.json"
    Placement(np.arange(6).reshape(1, 6, 1), 6).write(plan)
    refused(run("simulate", trace_file, *setting, "--plan", plan), 1, "layers")


def test_an_unknown_format_to_export_to(trace_file: Path, setting: list[str], run: Run, outputs: Path, tmp_path: Path):
    plan = tmp_path / "plan.json"
    assert run("solve", trace_file, *setting, "--solver", "lpt", "-o", plan).code == 0
    refused(run("export", plan, "--to", "sgalng", "-o", outputs / "experts.json"), 1, "did you mean 'sglang'?")


def test_a_folder_that_does_not_exist_is_told_before_any_work(trace_file: Path, setting: list[str], run: Run):
    for verb in ("solve", "compare"):
        done = run(verb, trace_file, *setting, "-o", "no/such/folder/result")
        refused(done, 1, "no/such/folder")
        assert "planning" not in done.err


def test_a_folder_in_place_of_a_file_is_told_before_any_work(
    trace_file: Path, setting: list[str], run: Run, tmp_path: Path
):
    for option, place, says in (("-o", tmp_path, "is a folder"), ("--save-plans", trace_file, "is a file")):
        done = run("compare", str(trace_file), *setting, option, str(place))
        assert done.code == 1
        assert says in done.err
        assert "planning" not in done.err


def test_a_fraction_that_leaves_nothing(trace_file: Path, setting: list[str], run: Run):
    refused(run("compare", trace_file, *setting, "--fit", "1.0"), 1, "between 0 and 1")


def test_a_part_that_does_not_exist(trace_file: Path, setting: list[str], run: Run):
    refused(run("solve", trace_file, *setting, "--part", "held_out"), 1, "did you mean 'held-out'?")


def test_a_demo_without_traces_says_what_to_do(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import moesim

    monkeypatch.setattr(moesim, "__file__", str(tmp_path / "site-packages" / "moesim" / "__init__.py"))
    refused(run("demo", "-o", tmp_path / "out"), 1, "no bundled traces", "moesim compare")
    assert not (tmp_path / "out").exists()


def test_errors_do_not_hide_what_json_was_asked_for(trace_file: Path, setting: list[str], run: Run):
    done = run("solve", trace_file, *setting, "--solver", "lpt", "--json")
    assert set(json.loads(done.out)) >= {"solver", "score_s", "bound_s", "gap", "wall_s"}


def test_a_sweep_without_a_result_fails_and_shows_why(run: Run, trace_file: Path, tmp_path: Path):
    study = tmp_path / "study.toml"
    study.write_text(
        f'[study]\nname = "none"\n[settings]\ntrace = "{trace_file}"\ntopology = "h100-1x8"\n'
        'solver = "lpt"\nslots = 1\n'
    )
    found = run("sweep", study, "-o", tmp_path / "out")
    assert found.code == 1
    assert "the only point: infeasible: slots" in found.out
    assert "none of 1 point could run; the first: infeasible: slots" in found.err
