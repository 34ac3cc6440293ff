"""Objectives, constraints, moves, losses and advice on the command line, and what a user gets wrong about them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moesim.placement import EMPTY, Placement
from moesim.solve import Plan
from moesim.trace import DECODE, PREFILL, Trace

from .conftest import Run
from .test_bad_input import refused


@pytest.fixture
def running(trace_file: Path, setting: list[str], run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "running.json"
    assert run("solve", trace_file, *setting, "--solver", "random", "-o", path).code == 0
    return path


def test_a_plan_under_constraints_with_its_schedule(
    trace_file: Path, setting: list[str], run: Run, running: Path, tmp_path: Path
) -> None:
    moves = tmp_path / "m.json"
    found = run(
        "solve", trace_file, *setting, "--previous", running, "--most-moves", 3, "--deadline", 1, "--risk", "cvar",
        "--migration", moves, "--rank-slots", "3,3,3,3,3,3", "--json",
    ).json  # fmt: skip
    assert found["migration"]["most_moves_of_a_layer"] <= 3
    assert found["constraints"]["most_moves"] == 3
    assert found["objective"]["risk"] == "cvar"
    lines = json.loads(moves.read_text())
    assert lines["schema_version"] == "moesim.migration/2"
    assert len(lines["moves"]) == found["migration"]["moves"]


def test_solve_flags_that_cannot_be(
    trace_file: Path, setting: list[str], run: Run, running: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    cases: list[tuple[list[object], int, tuple[str, ...]]] = [
        (["--objective", "trafic"], 1, ("trafic", "did you mean 'traffic'?")),
        (["--risk", "cvarr"], 1, ("did you mean 'cvar'?",)),
        (["--worst", 0], 1, ("share", "0")),
        (["--windows", "domains"], 1, ("did you mean 'domain'?",)),
        (["--rank-slots", "3,3"], 1, ("rank_slots", "6 ranks")),
        (["--rank-slots", "many"], 1, ("--rank-slots", "memory")),
        (["--slot-budget", 1], 3, ("slot budget",)),
        (["--hot", 4], 3, ("hot", "nodes")),
        (["--hot", 99], 1, ("99 hot experts of 12",)),
        (["--hot-mode", "hardd"], 1, ("did you mean 'hard'?",)),
        (["--most-moves", 3], 1, ("previous",)),
        (["--most-moves", -1, "--previous", running], 1, ("most_moves",)),
        (["--most-bytes", "500", "--previous", running], 1, ("--most-bytes", "unit")),
        (["--horizon", "10"], 1, ("--horizon", "unit")),
        (["--horizon", "10 min"], 1, ("horizon", "previous")),
        (["--migration", tmp_path / "m.json"], 1, ("--migration", "--previous")),
        (["--previous", running, "--slots-per-rank", 2], 1, ("previous placement", "slots per rank")),
    ]
    for options, code, words in cases:
        refused(run("solve", trace_file, *setting, "--deadline", 1, *options, "-o", out), code, *words)
    assert not out.exists()
    assert not (tmp_path / "m.json").exists()


def test_a_comparison_with_what_runs(
    trace_file: Path, setting: list[str], run: Run, running: Path, tmp_path: Path
) -> None:
    done = run(
        "compare", trace_file, *setting, "--solver", "eplb,lpt", "--previous", running, "--regret", "--deadline", 1,
        "--steps", 2, "--json",
    )  # fmt: skip
    rows = {row["solver"]: row for row in done.json["rows"]}
    assert list(rows) == ["eplb", "lpt", "stay"]
    assert rows["stay"]["moves"] == 0
    for row in rows.values():
        assert row["regret"] >= -1e-9
        assert row["worst_step_s"] >= row["step_s"]
    for name in ("eplb", "lpt"):
        assert rows[name]["move_s"] > 0
        even = rows[name]["break_even_s"]
        assert (even is None) == (rows[name]["step_s"] >= rows["stay"]["step_s"])
    page = tmp_path / "report.html"
    asked = ("--solver", "eplb", "--previous", running, "--steps", 2, "--regret", "--deadline", 1, "-o", page)
    table, html = run("compare", trace_file, *setting, *asked).out, page.read_text(encoding="utf-8")
    # what was asked for is in the report too
    for title in ("regret", "moves", "move", "break-even"):
        assert f" {title} " in table
        assert f"<th>{title}</th>" in html
    assert "<td>stay</td>" in html


def test_a_move_is_priced_written_and_reached(setting: list[str], run: Run, trace_file: Path, running: Path) -> None:
    planned, steps, reached = (running.with_name(name) for name in ("planned.json", "steps.json", "reached.json"))
    assert run("solve", trace_file, *setting, "--solver", "eplb", "-o", planned).code == 0
    where = ["--topology", "h100-1x8", "--ranks", 6, "--model", "deepseek-v3", "--staging", 1]
    done = run("migrate", running, planned, *where, "-o", steps, "--reached", reached, "--json")
    # plans at the dimensions of another model, so that it may be another one; but nothing says that it was meant
    assert "note: these are placements of 2 layers of 12 experts, deepseek-v3 has 58 of 256" in done.err
    found = done.json
    assert found["moves"] > 0
    assert found["commits"] >= found["most_moves_of_a_layer"] / 6
    again = run("migrate", reached, planned, *where, "--json").json
    assert again["moves"] == 0
    plain = run("migrate", running, planned, *where, "--no-relabel", "--json").json
    assert plain["moves"] >= found["moves"]
    refused(run("migrate", running, planned, "--topology", "h100-1x8", "--model", "deepseek-v3"), 1, "6 ranks", "8")
    refused(run("migrate", running, planned, *where[:-1], 0), 1, "room to receive one expert")
    refused(run("migrate", running, "nowhere.json", *where), 1, "nowhere.json", "no such file")


def test_slots_that_few_moves_leave_empty_are_filled_for_engines(
    trace_file: Path, setting: list[str], run: Run, running: Path
) -> None:
    plan, out = running.with_name("wider.json"), running.with_name("experts.json")
    given = [*setting, "--slots-per-rank", 4, "--previous", running, "--most-moves", 2, "--deadline", 1, "-o", plan]
    assert run("solve", trace_file, *given).code == 0
    to = ["export", plan, "--to", "vllm", "--policy", "any", "-o", out]
    refused(run(*to), 1, "full slots", "--fill TRACE")
    assert not out.exists()
    facts = run(*to, "--fill", trace_file, "--json").json
    empty = Plan.read(plan).placement.empty_slots
    assert empty > 0
    assert facts["notes"][0].startswith(f"{empty} empty slots filled with further copies")
    assert facts["empty_slots"] == 0
    kept, filled = Plan.read(plan).placement.experts, Placement.read(out).experts
    assert ((kept == filled) | (kept == EMPTY)).all()
    again = run("export", out, "--to", "json", "-o", out.with_name("again.json"), "--fill", trace_file, "--json").json
    assert again["notes"] == []


def test_rebalancing_runs_on_the_cluster_that_is_asked_for(trace_file: Path, setting: list[str], run: Run) -> None:
    def steps(*more: object) -> list[float]:
        brief = ("--intervals", 1, "--thresholds", 0.5, "--cycles", 1, "--block", 2)
        return [row["step_s"] for row in run("rebalance", trace_file, *setting, *brief, *more, "--json").json["rows"]]

    whole, slow = steps(), steps("--degrade", "node0.gpu0=0.05")
    assert all(later > 1.05 * was for was, later in zip(whole, slow, strict=True))
    assert steps("--set", 'tier.node.bandwidth="900 GB/s"') != whole
    refused(run("rebalance", trace_file, *setting, "--without", "node7"), 1, "node7")
    refused(run("rebalance", trace_file, *setting, "--format-option", "colour=red"), 1, "colour")


def test_losses_of_a_plan(trace_file: Path, setting: list[str], run: Run, running: Path) -> None:
    found = run("survive", trace_file, *setting, "--plan", running, "--steps", 1, "--json").json
    assert len(found["losses"]) == 6
    assert all(loss["kind"] == "gpu" for loss in found["losses"])  # the only node is all there is
    assert any(note.endswith("the plan's") for note in found["notes"])
    assert any(note.startswith("kept: the first 1 ") for note in found["notes"])
    done = run("survive", trace_file, *setting, "--plan", running, "--steps", 1, "--lose", "gpu")
    assert "experts gone" in done.out
    refused(run("survive", trace_file, *setting, "--plan", running, "--lose", "gpus"), 1, "did you mean 'gpu'?")
    refused(run("survive", trace_file, *setting, "--plan", running, "--lose", ","), 1, "--lose: expected gpu, node or")


def test_a_lost_gpu_is_planned_around(trace_file: Path, setting: list[str], run: Run, running: Path) -> None:
    lost = ["--topology", "h100-1x8", "--without", "node0.gpu7", "--without", "node0.gpu6", "--tokens-per-rank", 64,
            "--dims", "deepseek-v3", "--deadline", 1, "--slots-per-rank", 3]  # fmt: skip
    # what runs is of the first six GPUs: all of them are left, or all but one
    assert run("solve", trace_file, *lost, "--previous", running, "--json").json["ranks"] == 6
    one = [*lost, "--without", "node0.gpu2", "--previous", running, "--json"]
    found = run("solve", trace_file, *one).json
    assert found["ranks"] == 5
    more = [*lost[:2], "--without", "node0.gpu2", *lost[6:]]
    refused(run("solve", trace_file, *more, "--previous", running), 1, "previous placement", "what is left")


@pytest.mark.parametrize(("slots", "lost", "gone"), [(2, 2, 4), (3, 2, 6), (3, 0, 0)])
def test_verbs_are_alike_in_what_ran_before_a_gpu_was_lost(
    slots: int, lost: int, gone: int, trace_file: Path, setting: list[str], run: Run, tmp_path: Path
) -> None:
    before = tmp_path / "before.json"
    how = ["--solver", "contiguous", "--slots-per-rank", slots]
    assert run("solve", trace_file, *setting, *how, "-o", before).code == 0
    gpus = [word for gpu in (7, 6, lost) for word in ("--without", f"node0.gpu{gpu}")]
    same = ["--topology", "h100-1x8", *gpus, "--tokens-per-rank", 64, "--dims", "deepseek-v3", "--deadline", 1,
            "--steps", 2, "--slots-per-rank", 3, "--previous", before, "--json"]  # fmt: skip
    assert run("solve", trace_file, *same).json["ranks"] == 5
    found = run("compare", trace_file, *same, "--solver", "eplb").json
    rows = {row["solver"]: row for row in found["rows"]}
    # slot p holds expert p modulo 12: some were on the lost GPU alone, in each of the two layers
    assert rows["stay"]["moves"] == gone
    said = f"stay: {gone} experts that only lost ranks held had to come back"
    assert any(note.startswith(said) for note in found["notes"]) == (gone > 0)
    assert rows["stay"]["break_even_s"] is None
    assert rows["eplb"]["moves"] >= gone
    assert (rows["stay"]["move_s"] > 0) == (gone > 0)
    advice = run("advise", trace_file, *same).json
    assert advice["settings"]["slots_per_rank"] == 3
    assert any("only lost ranks held" in note for note in advice["notes"]) == (gone > 0)
    wrong = ["--topology", "h100-1x8", "--without", f"node0.gpu{lost}", *same[8:]]
    for verb in ("solve", "compare", "advise"):
        refused(run(verb, trace_file, *wrong), 1, "previous placement", "what is left")


def test_a_move_to_ranks_with_more_slots(trace_file: Path, setting: list[str], run: Run, tmp_path: Path) -> None:
    few, many = (tmp_path / name for name in ("few.json", "many.json"))
    for path, slots in ((few, 2), (many, 3)):
        more = ["--solver", "lpt", "--slots-per-rank", slots, "-o", path]
        assert run("solve", trace_file, *setting, *more).code == 0
    where = ["--topology", "h100-1x8", "--ranks", 6, "--model", "deepseek-v3"]
    moved = run("migrate", few, many, *where, "--json")
    assert moved.json["moves"] > 0
    assert "the new ones are empty" in moved.err
    refused(run("migrate", many, few, *where), 1, "planned placement")


def test_serving_says_what_the_plan_has_seen(trace_file: Path, setting: list[str], run: Run, running: Path) -> None:
    where = setting[: setting.index("--tokens-per-rank")] + setting[setting.index("--tokens-per-rank") + 2 :]
    load = ["--arrivals", "poisson", "--rate", 50, "--requests", 3, "--prompt", 8, "--answer", 2, "--json"]
    found = run("serve", trace_file, *where, *load, "--plan", running).json
    assert any("fitted on this trace" in note for note in found["notes"])


def test_serving_runs_a_plan_as_it_was_planned_for_unless_asked_otherwise(
    trace_file: Path, setting: list[str], run: Run, tmp_path: Path
) -> None:
    plan, planned = tmp_path / "uniform.json", ["--policy", "uniform", "--transport", "rank-dedup"]
    assert run("solve", trace_file, *setting, "--solver", "eplb", *planned, "-o", plan).code == 0
    where = setting[: setting.index("--tokens-per-rank")] + setting[setting.index("--tokens-per-rank") + 2 :]
    load = ["--arrivals", "poisson", "--rate", 50, "--requests", 3, "--prompt", 8, "--answer", 2, "--json"]
    found = run("serve", trace_file, *where, *load, "--plan", plan).json
    assert (found["policy"], found["transport"]) == ("uniform", ["rank-dedup"])
    assert "policy uniform and transport rank-dedup: the plan's" in found["notes"]
    found = run("serve", trace_file, *where, *load, "--plan", plan, "--policy", "nearest").json
    assert (found["policy"], found["transport"]) == ("nearest", ["rank-dedup"])
    assert "policy nearest was asked for; the plan was made for uniform" in found["notes"]
    found = run("serve", trace_file, *where, *load).json
    assert (found["policy"], found["transport"]) == ("nearest", ["direct"])


def test_what_serving_lacks_is_asked_for_before_any_plan_is_made(
    trace_file: Path, setting: list[str], run: Run
) -> None:
    where = [*setting[:4], "--arrivals", "poisson"]
    done = run("serve", trace_file, *where, "--rate", 50)
    refused(done, 1, "give both, --rate (requests a second) and --requests (how many)")
    where += ["--rate", 50, "--requests", 3]
    refused(run("serve", trace_file, *where), 1, "the attention of little is not known", "give --kv-tokens (tokens")
    done = run("serve", trace_file, *where, "--scheduler", "least-loadd")
    refused(done, 1, "did you mean 'least-loaded'")
    assert "planning" not in done.err


def test_serving_plans_on_a_part_that_holds_prompts_alone(
    trace_file: Path, setting: list[str], run: Run, tmp_path: Path
) -> None:
    read = Trace.read(trace_file)
    # prompts are in the first half of the steps, on which the plan is made, answers in the second
    asked, said = (read.select(np.flatnonzero(read.phase == phase)[:1000]) for phase in (PREFILL, DECODE))
    Trace(
        read.spec,
        routes=np.concatenate([asked.routes, said.routes]),
        request=np.concatenate([asked.request, said.request]),
        position=np.concatenate([asked.position, said.position]),
        phase=np.repeat([PREFILL, DECODE], 1000),
        step=np.arange(2000) // 100,
    ).write(tmp_path / "sorted.parquet")
    load = ["--arrivals", "poisson", "--rate", 50, "--requests", 3, "--prompt", 8, "--answer", 2, "--json"]
    assert run("serve", tmp_path / "sorted.parquet", *setting[:4], *setting[6:], *load).json["finished"] == 3


def test_recovery_that_cannot_be(trace_file: Path, setting: list[str], run: Run) -> None:
    refused(run("recover", trace_file, *setting, "--moves", "few"), 1, "--moves")
    refused(run("recover", trace_file, *setting, "--share", 0), 1, "share")


def test_advice_fits_one_screen(trace_file: Path, setting: list[str], run: Run, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    done = run("advise", trace_file, *setting, "--deadline", 1, "--steps", 2, "-o", plan)
    assert done.code == 0
    for word in ("now:", "bottleneck:", "placement:", "eplb:", "slots:", "policy:", "regret:"):
        assert word in done.out
    assert len(done.out.splitlines()) < 50
    assert plan.exists()
    found = run("advise", trace_file, *setting, "--deadline", 1, "--steps", 2, "--previous", plan, "--json").json
    assert set(found["answers"]) == {"placement", "eplb", "slots", "policy"}
    refused(run("advise", trace_file, *setting, "--horizon", "0 s"), 1, "horizon")
    refused(run("advise", trace_file, *setting, "--previous", plan, "--slots-per-rank", 5), 1, "has 3 slots a rank")
    refused(run("advise", trace_file, *setting, "--policy", "neerest"), 1, "did you mean 'nearest'?")


def test_phases_say_where_steps_were_not_as_recorded(trace_file: Path, setting: list[str], run: Run) -> None:
    where = [*setting[:4], "--tokens-per-rank", "prefill=2000,decode=4", "--steps", 1, "--deadline", 0.2]
    found = run("phases", trace_file, *where, "--json").json
    assert any(note.startswith("prefill, held-out steps resampled") for note in found["notes"])
    assert "note: prefill, held-out steps resampled" in run("phases", trace_file, *where).out
    hurried = run("phases", trace_file, *where[:-1], 0.01, "--json").json["notes"]
    for phase in ("prefill", "decode"):
        assert any(note.startswith(f"plan for {phase}: the deadline ") for note in hurried)


def test_prefill_and_decode_side_by_side(trace_file: Path, setting: list[str], run: Run, tmp_path: Path) -> None:
    plain = [part for part in setting if part not in ("--tokens-per-rank", "64")]
    how = ["--tokens-per-rank", "prefill=64,decode=16", "--steps", 2, "--deadline", 1]
    done = run("phases", trace_file, *plain, *how, "--save-plans", tmp_path / "plans", "--json")
    rows = {(row["phase"], row["plan"]): row for row in done.json["rows"]}
    assert len(rows) == 4
    for phase, transport, tokens in (("prefill", "hierarchical", 64), ("decode", "direct", 16)):
        own = rows[phase, phase]
        assert (own["slower"], own["transport"], own["tokens_per_rank"]) == (0.0, transport, tokens)
        assert (tmp_path / "plans" / f"{phase}.json").exists()
    refused(run("phases", trace_file, *plain, "--tokens-per-rank", "64"), 1, "PHASE=VALUE")
    refused(run("phases", trace_file, *plain, "--policy", "prefil=nearest"), 1, "did you mean 'prefill'?")
    twice = ("--tokens-per-rank", "decode=4,decode=8")
    refused(run("phases", trace_file, *plain, *twice), 1, "--tokens-per-rank: decode is given twice")


def test_serving_on_a_trace_that_is_too_short_advises_options_that_it_has(
    trace_file: Path, setting: list[str], run: Run, tmp_path: Path
) -> None:
    read = Trace.read(trace_file)
    first = np.unique(read.request, return_index=True)[1]
    read.select(first[:6]).write(tmp_path / "short.parquet")
    load = ["--arrivals", "poisson", "--rate", 50, "--requests", 3, "--prompt", 8, "--answer", 2]
    done = run("serve", tmp_path / "short.parquet", *setting[:4], *setting[6:], *load)
    refused(
        done, 1, "would draw each of", "give a longer trace, fewer --ranks, or more of the trace to plan on (--fit)"
    )
    assert "per rank" not in done.err
