"""Each verb does what its help says; stdout is data, stderr is everything else."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

import moesim
from moesim.cli import main
from moesim.placement import Placement
from moesim.solve import Plan
from moesim.spec import PRESETS, ModelSpec
from moesim.trace import Trace
from moesim.trace.formats import read_any
from moesim.trace.synthetic import router

from .conftest import SPEC, Run

SOLVERS = "contiguous,eplb,moesim"
ROW = [
    "solver", "policy", "transport", "step_s", "all_to_all_s", "compute_s", "imbalance", "batch_imbalance",
    "cross_node_bytes", "bound_s", "gap", "solve_s", "fit_step_s", "worst_step_s", "worst_domain",
    "worst_domain_step_s", "regret", "moves", "move_s", "break_even_s",
]  # fmt: skip


@pytest.fixture(scope="session")
def compared(trace_file: Path, setting: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """One comparison for many tests: its JSON, and the folder of its plans and report."""
    folder = tmp_path_factory.mktemp("compared")
    text = StringIO()
    with redirect_stdout(text), pytest.raises(SystemExit) as ended:
        main(
            ["compare", str(trace_file), *setting, "--solver", SOLVERS, "--slots-per-rank", "3", "--fit", "0.4",
             "--phase", "decode", "--seed", "3", "--deadline", "4", "--json", "--save-plans", str(folder / "plans"),
             "-o", str(folder / "report.html")]
        )  # fmt: skip
    assert not ended.value.code
    return json.loads(text.getvalue()), folder


def test_a_comparison_has_the_documented_keys(compared: tuple[dict, Path]):
    found, _ = compared
    assert {"trace", "topology", "rows", "not_run", "best", "bound_s", "notes", "settings"} <= set(found)
    assert [row["solver"] for row in found["rows"]] == SOLVERS.split(",")
    assert all(list(row) == ROW for row in found["rows"])


def test_rows_keep_the_laws(compared: tuple[dict, Path]):
    found, _ = compared
    for row in found["rows"]:
        assert row["step_s"] >= row["bound_s"] > 0
        assert row["gap"] == pytest.approx(row["step_s"] / row["bound_s"] - 1)
        assert row["imbalance"] >= 1
        assert row["batch_imbalance"] >= row["imbalance"] - 1e-9
        assert row["cross_node_bytes"] == 0
    assert found["best"] == min(found["rows"], key=lambda row: row["step_s"])["solver"]


@pytest.mark.parametrize("solver", SOLVERS.split(","))
def test_simulate_gives_every_number_of_the_table_again(
    solver: str, compared: tuple[dict, Path], trace_file: Path, setting: list[str], run: Run
):
    found, folder = compared
    row = next(row for row in found["rows"] if row["solver"] == solver)
    plan = folder / "plans" / f"{solver}.json"
    same = [trace_file, *setting, "--plan", plan, "--fit", "0.4", "--phase", "decode", "--seed", "3", "--json"]
    held_out = run("simulate", *same, "--part", "held-out").json
    for key in ("policy", "transport", "step_s", "all_to_all_s", "compute_s", "imbalance", "batch_imbalance",
                "cross_node_bytes", "bound_s", "gap"):  # fmt: skip
        assert held_out[key] == row[key], key
    assert held_out["seen_steps"] == 0
    fit = run("simulate", *same, "--part", "fit").json
    assert fit["step_s"] == row["fit_step_s"]
    assert fit["seen_steps"] == fit["steps"]
    assert Plan.read(plan).wall_s == row["solve_s"]


def test_solve_on_the_fit_part_gives_the_plan_of_the_comparison(
    compared: tuple[dict, Path], trace_file: Path, setting: list[str], run: Run, tmp_path: Path
):
    _, folder = compared
    facts = run(
        "solve", trace_file, *setting, "--solver", "eplb", "--slots-per-rank", 3, "--part", "fit", "--fit", "0.4",
        "--phase", "decode", "--seed", 3, "-o", tmp_path / "plan.json", "--json",
    ).json  # fmt: skip
    plan, theirs = Plan.read(tmp_path / "plan.json"), Plan.read(folder / "plans" / "eplb.json")
    assert plan.placement == theirs.placement
    assert facts["score_s"] == plan.score_s == theirs.score_s
    assert facts["digest"] == plan.placement.digest


def test_the_report_needs_nothing_else(compared: tuple[dict, Path]):
    page = (compared[1] / "report.html").read_text(encoding="utf-8")
    _, _, body = page.partition("</script>\n</head>")
    # addresses may be cited as text, but nothing is fetched
    assert re.findall(r"(?:src|href)\s*=\s*[\"']?(?!data:)[^\s>]+|@import|url\(", body) == []
    assert page.count("plotly.js v") == 1
    for figure in range(1, 8):
        assert f'id="figure-{figure}"' in body
    for solver in SOLVERS.split(","):
        assert f"<td>{solver}</td>" in body
    assert "moesim compare" in body
    assert "--solver contiguous,eplb,moesim" in body


def test_a_comparison_for_people_is_one_table_with_the_bound(trace_file: Path, setting: list[str], run: Run):
    done = run("compare", trace_file, *setting, "--solver", "contiguous,lpt", "--phase", "decode", "--steps", 2)
    assert done.code == 0
    assert "contiguous" in done.out
    assert "is fastest" in done.out
    assert "bound" in done.out
    assert "planning with lpt" in done.err


@pytest.mark.parametrize("width", [40, 80, None])
def test_a_narrow_terminal_stacks_the_table_and_cuts_no_number(
    width: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from moesim.cli.screen import print_table

    monkeypatch.setenv("COLUMNS", str(width or 40))
    # None: a pipe, where nothing is narrow
    monkeypatch.setattr("sys.stdout.isatty", lambda: width is not None)
    cells = [[f"{row}.{number:02d}7 ms" for number in range(11)] for row in range(2)]
    print_table([f"column {number}" for number in range(11)], cells, title="a title of some words")
    out = capsys.readouterr().out
    assert all(out.count(cell) == 1 for row in cells for cell in row[1:])
    parts = out.count("column 0")
    assert all(out.count(row[0]) == parts for row in cells)
    assert parts == {40: 5, 80: 2, None: 1}[width]
    longest = max(len(re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()) for line in out.splitlines())
    assert longest <= (width or 200)


def test_on_a_terminal_the_seconds_go_on_while_one_thing_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from moesim.cli.screen import progress

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress() as say:
        say("planning with [moesim]")
        time.sleep(1.7)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "planning with [moesim]  0 s" in shown
    assert "planning with [moesim]  1 s" in shown


def test_a_solver_that_cannot_run_here_is_listed_with_the_reason(trace_file: Path, run: Run):
    found = run(
        "compare", trace_file, "-t", "h100-4x8-rail", "--solver", "contiguous,eplb-hierarchical", "--slots-per-rank", 1,
        "--tokens-per-rank", 16, "--phase", "decode", "--json",
    ).json  # fmt: skip
    assert [row["solver"] for row in found["rows"]] == ["contiguous"]
    [entry] = found["not_run"]
    assert entry["solver"] == "eplb-hierarchical"
    assert entry["reason"]


def test_other_traffic_can_be_the_judge(trace_file: Path, setting: list[str], run: Run, tmp_path: Path):
    other = tmp_path / "other.parquet"
    router(SPEC, 4000, seed=9, request_tokens=40).write(other)
    found = run("compare", trace_file, "--held-out", other, *setting, "--solver", "contiguous", "--json").json
    assert found["trace"]["held_out_digest"] == Trace.read(other).digest
    assert found["settings"]["fit"] is None
    same = run("compare", trace_file, "--held-out", trace_file, *setting, "--solver", "contiguous")
    assert same.code == 1
    assert "fit trace itself" in same.err


def test_a_timeline_opens_as_a_chrome_trace(
    compared: tuple[dict, Path], trace_file: Path, setting: list[str], run: Run, tmp_path: Path
):
    plan = compared[1] / "plans" / "contiguous.json"
    done = run("simulate", trace_file, *setting, "--plan", plan, "--timeline", tmp_path / "t.json", "--steps", 2)
    assert done.code == 0
    assert "no placement of 3 slots" in done.out
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert {event["ph"] for event in events} >= {"X"}


def test_simulate_says_that_a_plan_was_made_for_another_policy(
    compared: tuple[dict, Path], trace_file: Path, setting: list[str], run: Run
):
    how = ["simulate", trace_file, *setting, "--plan", compared[1] / "plans" / "contiguous.json", "--steps", 1]
    said = "note: the plan was made for policy nearest; simulated under uniform"
    assert said in run(*how, "--policy", "uniform").out
    assert "made for policy" not in run(*how, "--policy", "nearest").out


def test_simulate_reads_a_trace_file_at_a_time_and_reports_the_same(
    compared: tuple[dict, Path], trace_file: Path, setting: list[str], run: Run, tmp_path: Path
):
    plan = compared[1] / "plans" / "contiguous.json"
    read = Trace.read(trace_file)
    n = 60 * 30
    recorded = Trace(
        read.spec, routes=read.routes[:n], request=np.arange(n), position=read.position[:n], step=np.arange(n) // 60,
        source=np.arange(n) % 6, phase=np.repeat(read.phase[:n:60], 60),
    )  # fmt: skip
    recorded.write(tmp_path / "recorded.parquet")
    how = ["simulate", tmp_path / "recorded.parquet", *setting[:4], *setting[6:], "--plan", plan, "--json"]
    whole, pieces = run(*how).json, run(*how, "--at-a-time", 100).json
    assert set(pieces) == {*whole, "chunk"}
    for key in ("phase", "policy", "transport", "steps", "tokens", "step_s", "step_times_s", "imbalance", "bottleneck"):
        assert pieces[key] == whole[key], key
    assert pieces["bound_s"] == pytest.approx(whole["bound_s"])
    assert pieces["gap"] == pytest.approx(whole["gap"])
    assert any("read 100 tokens at a time" in note for note in pieces["notes"])
    # where steps are packed, of the phase that was asked for
    packed = run("simulate", trace_file, *setting, "--plan", plan, "--phase", "decode", "--at-a-time", 1000)
    assert packed.code == 0, packed.err
    assert "no placement of 3 slots" in packed.out
    assert "simulated" in packed.err


def test_what_needs_the_whole_trace_is_refused_where_it_is_read_in_pieces(
    compared: tuple[dict, Path], trace_file: Path, setting: list[str], run: Run, tmp_path: Path
):
    how = [*setting, "--plan", compared[1] / "plans" / "contiguous.json", "--at-a-time", 100]
    for more in (["--part", "fit"], ["--steps", 2], ["--timeline", tmp_path / "t.json"], ["--model", "mixtral-8x7b"],
                 ["--chakra", tmp_path / "c"], ["--format", "npz"], ["--format-option", "phase=decode"]):  # fmt: skip
        done = run("simulate", trace_file, *how, *more)
        assert (done.code, f"{more[0]} would need all of it" in done.err) == (1, True)
    assert not list(tmp_path.iterdir())
    np.savez(tmp_path / "trace.npz", experts=np.zeros((8, 24, 4), np.int16))
    done = run("simulate", tmp_path / "trace.npz", *how)
    assert (done.code, "moesim import" in done.err) == (1, True)
    done = run("simulate", tmp_path / "nowhere.parquet", *how)
    assert (done.code, "no such file" in done.err) == (1, True)
    done = run("simulate", trace_file, *how, "--phase", "train")
    assert (done.code, "holds prefill and decode tokens, none of train" in done.err) == (1, True)


def test_an_exported_map_is_read_back(compared: tuple[dict, Path], run: Run, tmp_path: Path):
    plan = compared[1] / "plans" / "moesim.json"
    facts = run("export", plan, "--to", "sglang", "-o", tmp_path / "experts.json", "--json").json
    assert facts["format"] == "sglang"
    assert "--init-expert-location" in facts["launch"]["flags"]
    back = Placement.read(tmp_path / "experts.json", "sglang", ranks=6, spec=SPEC)
    assert back == Plan.read(plan).placement


def test_an_export_for_people_says_how_to_start_the_engine(compared: tuple[dict, Path], run: Run, tmp_path: Path):
    done = run("export", compared[1] / "plans" / "moesim.json", "--to", "sglang", "-o", tmp_path / "experts.json")
    assert done.code == 0
    assert f"--init-expert-location {tmp_path / 'experts.json'}" in done.out


def test_import_writes_parquet_that_reads_back(shared_data: Path, run: Run, tmp_path: Path):
    source = shared_data / "routing" / "gpt_oss_20b_decode.npz"
    facts = run(
        "import", source, "--model", "gpt-oss-20b", "--format-option", "phase=decode", "--format-option",
        "domain=category", "-o", tmp_path / "trace.parquet", "--json",
    ).json  # fmt: skip
    trace = Trace.read(tmp_path / "trace.parquet")
    assert facts["rows"] == trace.tokens == 73415
    assert trace == read_any(source, model="gpt-oss-20b", phase="decode", domain="category")


def test_layers_that_a_file_holds_are_given_by_number(run: Run, tmp_path: Path):
    np.savez(tmp_path / "some.npz", experts=np.tile(np.arange(4), (50, 3, 1)))
    out = tmp_path / "trace.parquet"
    for text in ("layers=0,7,15", "layers=[0, 7, 15]"):
        assert (
            run("import", tmp_path / "some.npz", "--model", "gpt-oss-20b", "--format-option", text, "-o", out).code == 0
        )
        assert Trace.read(out).spec.layer_ids == (0, 7, 15)
    bare = run("import", tmp_path / "some.npz", "--model", "gpt-oss-20b", "-o", out)
    assert bare.code == 1
    assert "say with --format-option layers=" in bare.err


def test_a_plan_shows_how_far_its_layers_are_from_their_bounds(compared: tuple[dict, Path], run: Run):
    path = compared[1] / "plans" / "moesim.json"
    plan = Plan.read(path)
    rows = json.loads(run("inspect", path, "--json").out)["by_layer"]
    assert [row["layer"] for row in rows] == list(plan.placement.layer_ids or range(plan.placement.layers))
    assert [row["gap"] for row in rows] == pytest.approx(plan.layer_gap.tolist())
    assert [row["score_s"] / row["bound_s"] - 1 for row in rows] == pytest.approx([row["gap"] for row in rows])
    text = " ".join(run("inspect", path).out.split())
    worst = max(rows, key=lambda row: row["gap"])
    assert f"largest {worst['gap']:.1%} (layer {worst['layer']})" in text
    assert f"median {np.median(plan.layer_gap):.1%}" in text


def test_inspect_knows_what_it_is_given(compared: tuple[dict, Path], trace_file: Path, run: Run):
    plans = compared[1] / "plans"
    assert run("inspect", trace_file, "--json").json["kind"] == "trace"
    assert run("inspect", "h100-4x8-rail", "--json").json["ranks"] == 32
    plan = run("inspect", plans / "eplb.json", "--json").json
    assert (plan["kind"], plan["solver"], plan["slots_per_rank"]) == ("plan", "eplb", 3)
    model = run("inspect", "preset:deepseek-v3", "--json").json
    assert model["parameters"] == ModelSpec.preset("deepseek-v3").parameters()


@pytest.mark.parametrize("what", [*(f"preset:{name}" for name in PRESETS), "h100-1x8", "gb200-nvl72"])
def test_inspect_prints_for_people(what: str, run: Run):
    done = run("inspect", what)
    assert done.code == 0
    assert what.removeprefix("preset:") in done.out


def test_inspect_of_a_trace_shows_its_statistics(trace_file: Path, run: Run):
    done = run("inspect", trace_file)
    assert done.code == 0
    assert "gini" in done.out
    assert "synthetic" in done.out


def test_the_same_command_prints_the_same_bytes(trace_file: Path, setting: list[str], run: Run, tmp_path: Path):
    plan = tmp_path / "plan.json"
    run("solve", trace_file, *setting, "--solver", "lpt", "--slots-per-rank", 3, "-o", plan)
    again = ["simulate", trace_file, *setting, "--plan", plan, "--json"]
    assert run(*again).out == run(*again).out


def test_version(run: Run):
    done = run("--version")
    assert (done.code, done.out) == (0, f"moesim {moesim.__version__}\n")


def test_what_if_edits_change_the_cluster(run: Run):
    facts = run("inspect", "h100-4x8-rail", "--set", "nodes=6", "--without", "node1", "--json").json
    assert (facts["nodes"], facts["ranks"]) == (5, 40)
    half = run("inspect", "h100-4x8-rail", "--degrade", "node1.nic3=0.5", "--json").json
    assert half["worst_pair"]["bandwidth"] == 0.5 * 46e9
    assert "NAME=PART" in run("inspect", "h100-4x8-rail", "--degrade", "node1.nic3").err
    assert "did you mean 'bandwidth'" in run("inspect", "h100-4x8-rail", "--set", "tier.rail.bandwith=1 GB/s").err


def test_the_name_of_an_edited_cluster_says_so(run: Run, tmp_path: Path):
    def name(*edits: str) -> str:
        found: str = run("inspect", "h100-4x8-rail", *edits, "--json").json["name"]
        return found

    assert name() == name("--set", "nodes=4") == "h100-4x8-rail"
    for edit in (["--set", "nodes=3"], ["--without", "node1"], ["--degrade", "node0.nic3=0.5"]):
        assert name(*edit) == "h100-4x8-rail-edited"
    # whoever names it himself has his way
    assert name("--set", "nodes=3", "--set", 'name="small"') == "small"
    # a written description keeps it
    run("inspect", "h100-4x8-rail", "--set", "nodes=3", "-o", tmp_path / "mine.toml")
    assert run("inspect", tmp_path / "mine.toml", "--json").json["name"] == "h100-4x8-rail-edited"


def test_a_wider_network_is_faster(trace_file: Path, run: Run):
    how = ["--topology", "h100-4x8-rail", "--solver", "lpt", "--tokens-per-rank", "64", "--dims", "deepseek-v3"]
    steps = [
        run("solve", trace_file, *how, "--json", "--set", f"tier.rail.bandwidth={width} GB/s").json["score_s"]
        for width in (50, 100)
    ]
    assert steps[1] < steps[0]


def test_inspect_reads_what_other_tools_say_of_a_cluster(root: Path, run: Run):
    sample = next((root / "tests/cluster/samples").glob("*ibnetdiscover*"))
    assert run("inspect", sample, "--json").json["kind"] == "topology"


def test_an_engine_of_another_policy_is_refused_unless_any_will_do(
    trace_file: Path, setting: list[str], run: Run, tmp_path: Path
):
    plan, file = tmp_path / "plan.json", tmp_path / "map.yaml"
    assert run("solve", trace_file, *setting, "--slots-per-rank", "3", "--solver", "lpt", "-o", plan).code == 0
    refused = run("export", plan, "--to", "trtllm", "-o", file)
    assert refused.code == 1
    assert "policy" in refused.err
    assert not file.exists()
    taken = run("export", plan, "--to", "trtllm", "--policy", "any", "-o", file, "--json").json
    assert any("does not hold" in note for note in taken["notes"])
    assert file.exists()


def test_a_topology_is_drawn_and_written_for_other_tools(run: Run, tmp_path: Path):
    how = ["--set", "nodes=2", "--json"]
    assert run("inspect", "h100-4x8-rail", *how, "-o", tmp_path / "c.html").code == 0
    assert "node1.nic7" in (tmp_path / "c.html").read_text() or "rail7" in (tmp_path / "c.html").read_text()
    facts = run("inspect", "h100-4x8-rail", *how, "-o", tmp_path / "c.toml").json
    assert run("inspect", tmp_path / "c.toml", "--json").json["digest"] == facts["digest"]
    assert run("inspect", "h100-4x8-rail", *how, "--to", "sglang", "-o", tmp_path / "costs.json").code == 0
    assert len(json.loads((tmp_path / "costs.json").read_text())["rank_cost_matrix"]) == 16
    for wrong, says in (("c.xyz", "name it .html"), ("no/c.html", "no folder")):
        done = run("inspect", "h100-4x8-rail", "-o", tmp_path / wrong)
        assert (done.code, says in done.err) == (1, True)
        assert not (tmp_path / wrong).exists()


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (Path(__file__).parents[2] / "topologies").glob("*.toml"))
)
def test_every_preset_is_drawn_and_simulates(name: str, trace_file: Path, run: Run, tmp_path: Path):
    assert run("inspect", name, "-o", tmp_path / "c.html").code == 0
    how = ["--topology", name, "--solver", "lpt", "--tokens-per-rank", "16", "--dims", "deepseek-v3", "--json"]
    plan = run("solve", trace_file, *how, "-o", tmp_path / "plan.json").json
    report = run("simulate", trace_file, *how[:2], *how[4:], "--plan", tmp_path / "plan.json").json
    assert report["step_s"] == plan["score_s"] > 0


def test_a_step_is_written_for_astra_sim(
    compared: tuple[dict, Path], trace_file: Path, setting: list[str], run: Run, tmp_path: Path
):
    plan = compared[1] / "plans" / "contiguous.json"
    done = run("simulate", trace_file, *setting, "--plan", plan, "--chakra", tmp_path / "step", "--steps", 2)
    assert done.code == 0, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step.{rank}.et" for rank in range(6)]
    refused = run("simulate", trace_file, *setting, "--plan", plan, "--chakra", tmp_path / "x", "--training")
    assert (refused.code, "leave --training out" in refused.err) == (1, True)


def test_an_export_knows_the_architecture_of_the_model_that_was_planned_for(
    run: Run, setting: list[str], tmp_path: Path
):
    trace, plan = tmp_path / "known.parquet", tmp_path / "plan.json"
    for model, notes in (("mixtral-8x7b", None), ("qwen3-30b-a3b", []), ("little", ["not known"])):
        spec = dataclasses.replace(SPEC, name=model)
        router(spec, 3000, seed=1, request_tokens=40).write(trace)
        assert run("solve", trace, *setting, "--solver", "lpt", "-o", plan).code == 0
        done = run("export", plan, "--to", "sglang", "--policy", "any", "-o", tmp_path / "map.json", "--json")
        if notes is None:
            assert done.code == 1
            assert "MixtralForCausalLM is not among" in done.err
        else:
            told = [note for note in done.json["notes"] if "architecture" in note]
            assert len(told) == len(notes)
            assert all(part in note for part, note in zip(notes, told, strict=True))
