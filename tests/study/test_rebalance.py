"""Planning anew on drifting traffic: moves are paid for, and the break-even interval is where it says."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from moesim.base.errors import InputError, UnknownName
from moesim.cli.app import app
from moesim.cluster import Cluster
from moesim.placement.migrate import migration
from moesim.solve import solve
from moesim.spec import ModelSpec
from moesim.study.drift import drifting
from moesim.study.rebalance import Rebalancing, World, cut_note, replay
from moesim.study.sweep import read_study, sweep
from moesim.study.sweep.rebalance import RebalanceSettings, row_of, run
from moesim.study.windows import costs_of
from moesim.trace import Trace
from moesim.trace.synthetic import router

SPEC = ModelSpec(
    name="drifts", layer_ids=(0, 1, 2), num_hidden_layers=3, experts=16, top_k=3, hidden=4096, intermediate=2048
)
GROUP = Cluster.preset("h100-4x8-rail").restrict([0, 1, 2, 3, 8, 9, 10, 11])


@pytest.fixture(scope="module")
def trace() -> Trace:
    return router(SPEC, 20_000, domains=3, skew=1.0, temperature=0.3, seed=1, request_tokens=50)


@pytest.fixture(scope="module")
def world(trace: Trace) -> World:
    batches, labels = drifting(trace, GROUP.ranks, block_steps=6, cycles=2, tokens_per_rank=64)
    return World(batches, labels, GROUP, costs_of(batches, GROUP, transport="direct"), "nearest", 3)


def test_domains_follow_one_another_and_no_token_comes_twice_in_a_block(trace: Trace):
    batches, labels = drifting(trace, 8, block_steps=5, cycles=2, tokens_per_rank=64)
    assert len(batches) == len(labels) == 2 * 3 * 5
    names = np.array(trace.domains)
    for step in range(len(batches)):
        rows = batches.token[batches.offsets[step] : batches.offsets[step + 1]]
        assert set(names[trace.domain[rows]].tolist()) == {labels[step]}
    for block in range(6):
        rows = batches.token[batches.offsets[5 * block] : batches.offsets[5 * (block + 1)]]
        assert len(np.unique(rows)) == len(rows)


def test_domains_may_be_patterns_and_must_be_there(trace: Trace):
    first, second, third = trace.domains
    _, labels = drifting(trace, 8, domains=[first, f"{second}|{third}"], block_steps=2, cycles=1, tokens_per_rank=16)
    assert labels == (first, first, f"{second}|{third}", f"{second}|{third}")
    with pytest.raises(UnknownName, match="domain of this trace"):
        drifting(trace, 8, domains=[first, "nowhere"])
    with pytest.raises(InputError, match=f"{first!r} is one; name at least two of the domains {first}, {second}, "):
        drifting(trace, 8, domains=[first])
    with pytest.raises(InputError, match="the trace has only the domain"):
        drifting(trace.select(trace.domain == 0), 8)
    with pytest.raises(InputError, match="at least 1 step, got 0"):
        drifting(trace, 8, max_steps=0)
    with pytest.raises(InputError, match="fewer tokens per rank"):
        drifting(trace, 8, tokens_per_rank=10_000)


def test_moves_are_paid_for(world: World):
    start = world.plan(0, 2, None)
    never = replay(world, start, Rebalancing("never", repeat=10))
    assert (never.plans, never.moves, never.stall_s.sum()) == (0, 0, 0)
    runs = {name: replay(world, start, Rebalancing("interval", interval=3, migrate=name, repeat=10)) for name in
            ("free", "overlap", "stop")}  # fmt: skip
    assert runs["free"].moves == runs["stop"].moves > 0
    assert runs["free"].stall_s.sum() == 0
    assert runs["stop"].stall_s.sum() > 0
    assert (runs["free"].step_s == runs["stop"].step_s).all()
    # beside serving nothing stops, but the old plan runs on for a while
    assert runs["overlap"].stall_s.sum() == 0
    assert runs["overlap"].step_s.sum() != runs["free"].step_s.sum()
    # what does not fit into the steps that a replayed one stands for goes on in the next
    late = {repeat: [replay(world, start, Rebalancing("interval", interval=3, migrate=name, repeat=repeat)).step_s
                     for name in ("free", "overlap")] for repeat in (1, 100_000)}  # fmt: skip
    differ = {repeat: np.flatnonzero(free != beside) for repeat, (free, beside) in late.items()}
    assert set(differ[100_000]) == set(np.flatnonzero(runs["stop"].stall_s))
    assert len(differ[1]) > len(differ[100_000])
    stalled = replay(world, start, Rebalancing("interval", interval=3, stall_s=0.5, repeat=10))
    moved = np.count_nonzero(runs["stop"].stall_s)
    assert stalled.total_s - runs["stop"].total_s == pytest.approx(0.5 * moved)


def test_the_next_plan_waits_for_what_is_moving(world: World):
    start, steps = world.plan(0, 2, None), len(world.batches)
    found = {
        (when, repeat): replay(world, start, Rebalancing(when, interval=1, migrate="overlap", repeat=repeat))
        for when in ("interval", "oracle")
        for repeat in (1, 100_000)
    }
    assert found["interval", 100_000].plans == steps - 1
    assert found["oracle", 100_000].plans == 6
    # a step is shorter than a move, so that hardly any of the copies of a plan a step could have been made
    slow = found["interval", 1]
    assert 0 < slow.plans < steps / 2
    seconds = slow.moved_bytes / (GROUP.ranks * 320e9)
    assert seconds < slow.serving_s
    assert 0 < found["oracle", 1].plans <= 6


def test_a_move_takes_as_long_as_the_rounds_of_its_schedule(world: World):
    old = world.plan(0, 2, None)
    plan = solve(
        world.batches.take(slice(6, 8)), GROUP, slots_per_rank=3, solver="eplb", costs=world.costs,
        transport="direct", previous=old, jobs=1,
    )  # fmt: skip
    new, seconds = plan.placement, world.move_s(old, plan.placement)
    assert seconds == pytest.approx(plan.terms["migration"]["move_s"])
    # nobody has more than one peer in a round, so links can only wait longer than if all bytes went at once
    copies = migration(old, new, GROUP.node)
    traffic = np.zeros((8, 8))
    np.add.at(traffic, (copies.source, copies.target), SPEC.expert_bytes)
    assert seconds > (GROUP.paths.link_bytes(traffic) / GROUP.link_bandwidth).max() > 0
    half = np.full(GROUP.links, 0.5)
    assert 1.9 * seconds < world.move_s(old, new, half) < 2 * seconds
    assert world.move_s(old, old) == 0


def test_who_knows_what_comes_and_moves_for_free_gains(world: World):
    start = world.plan(0, 2, None)
    never = replay(world, start, Rebalancing("never"))
    oracle = replay(world, start, Rebalancing("oracle", migrate="free"))
    assert oracle.plans == 6
    assert oracle.total_s < never.total_s
    assert oracle.imbalance.mean() < never.imbalance.mean()


def test_at_the_break_even_interval_planning_anew_costs_what_it_saves(world: World):
    start = world.plan(0, 2, None)
    rule = Rebalancing("interval", interval=2, stall_s=0.2, repeat=1000)
    row = row_of(replay(world, start, rule), replay(world, start, Rebalancing("never", repeat=1000)), rule)
    even = row["break_even_interval_s"]
    assert even is not None
    assert row["stopped_s"] > rule.stall_s
    repeat = even / (rule.interval * row["step_s"])
    shorter = dataclasses.replace(rule, repeat=max(1, int(repeat * 0.8)))
    longer = dataclasses.replace(rule, repeat=int(repeat * 1.25) + 1)
    saved = []
    for one in (shorter, longer):
        never = replay(world, start, Rebalancing("never", repeat=one.repeat))
        saved.append(row_of(replay(world, start, one), never, one)["saved_share"])
    assert saved[0] < 0 < saved[1]


def test_what_moves_beside_serving_cost_counts_towards_the_break_even_interval(world: World):
    start = world.plan(0, 2, None)
    rule = Rebalancing("interval", interval=2, migrate="overlap", repeat=1000)
    found = replay(world, start, rule)
    row = row_of(found, replay(world, start, Rebalancing("never", repeat=1000)), rule)
    free = replay(world, start, dataclasses.replace(rule, migrate="free"))
    assert found.beside_s.sum() == pytest.approx(found.serving_s - free.serving_s)
    assert found.beside_s.sum() > 0 == row["stopped_s"]
    even = row["break_even_interval_s"]
    assert even == pytest.approx(row["interval_s"] * found.beside_s.sum() / (row["never_s"] - free.total_s))
    # a tenth of the real steps pay for moves as long: the interval is as many seconds as before
    tenth = dataclasses.replace(rule, repeat=100)
    again = row_of(replay(world, start, tenth), replay(world, start, Rebalancing("never", repeat=100)), tenth)
    assert again["break_even_interval_s"] == pytest.approx(even, rel=0.02)


def test_a_threshold_plans_where_balance_falls_and_a_gain_is_asked_for(world: World):
    start = world.plan(0, 2, None)
    loose = replay(world, start, Rebalancing("threshold", threshold=0.05))
    strict = replay(world, start, Rebalancing("threshold", threshold=5.0))
    assert loose.plans > strict.plans == 0
    wary = replay(world, start, Rebalancing("interval", interval=2, gain=10.0))
    assert wary.plans > 0
    assert wary.moves == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"when": "often"}, "unknown time to plan anew 'often'"),
        ({"migrate": "teleport"}, "unknown way to migrate 'teleport'"),
        ({"interval": 0}, "interval: expected at least 1, got 0"),
        ({"threshold": -0.5}, "threshold: expected at least 0, got -0.5"),
        ({"share": 0.0}, "share: expected a part above 0 and at most 1, got 0.0"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        Rebalancing(**wrong)


def test_a_study_that_varies_what_a_plan_must_gain_and_how_many_steps_there_are(trace: Trace, tmp_path: Path):
    trace.write(tmp_path / "drift.parquet")
    (tmp_path / "study.toml").write_text(
        """
[study]
name = "gains"
kind = "rebalance"
[settings]
trace = "drift.parquet"
topology = "h100-1x8"
tokens_per_rank = 32
block_steps = 3
cycles = 1
interval = 2
[axes]
gain = [0.0, 10.0]
steps = [5, 100]
"""
    )
    rows = sweep(read_study(tmp_path / "study.toml"), tmp_path / "out", jobs=1).rows
    assert [(row["gain"], row["steps"]) for row in rows] == [(0.0, 5), (0.0, 100), (10.0, 5), (10.0, 100)]
    assert [row["replayed_steps"] for row in rows] == [5, 9, 5, 9]
    assert [row["plans"] for row in rows] == [2, 4, 2, 4]
    assert all(row["moves"] == 0 == row["saved_share"] for row in rows[2:])
    assert all(row["moves"] > 0 != row["saved_share"] for row in rows[:2])
    assert ["kept: the first 5 of 9 steps" in row["notes"] for row in rows] == [True, False, True, False]


def test_the_verb_answers_in_one_line_and_in_json(trace: Trace, tmp_path: Path):
    trace.write(tmp_path / "drift.parquet")
    command = ["rebalance", str(tmp_path / "drift.parquet"), "-t", "h100-4x8-rail", "--ranks", "8"]
    command += ["--intervals", "1,4", "--block", "4", "--cycles", "1", "--thresholds", "0.2"]
    command += ["-o", str(tmp_path / "figure.html")]
    result = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    data = json.loads(result.stdout)
    assert [row["rule"] for row in data["rows"]] == [
        "never", "every 1", "every 4", "imbalance +20%", "oracle", "oracle (moves for free)",
    ]  # fmt: skip
    assert data["rows"][0]["saved_share"] == 0
    assert "moving for free" in data["answer"]
    assert "How often to plan anew" in (tmp_path / "figure.html").read_text()


def test_the_answer_claims_nothing_that_was_not_tried(trace: Trace, tmp_path: Path):
    trace.write(tmp_path / "drift.parquet")
    command = ["rebalance", str(tmp_path / "drift.parquet"), "-t", "h100-4x8-rail", "--ranks", "8", "--json"]
    command += ["--block", "4", "--cycles", "1"]

    def answer(*more: str) -> str:
        return str(json.loads(CliRunner().invoke(app, [*command, *more], catch_exceptions=False).stdout)["answer"])

    assert answer("--intervals", "100", "--thresholds", "9").startswith("no rule planned anew in these steps: take ")
    beside = answer("--intervals", "2", "--thresholds", "9", "--migrate", "overlap", "--start", "first")
    assert beside.startswith("best: every 2, saves ")
    assert "apart" in beside
    assert " 0 s apart" not in beside


def test_a_plan_has_a_deadline_of_its_own_and_a_note_says_where_it_cut(trace: Trace, tmp_path: Path):
    trace.write(tmp_path / "drift.parquet")
    command = ["rebalance", str(tmp_path / "drift.parquet"), "-t", "h100-1x8", "--block", "3", "--cycles", "1"]
    command += ["--intervals", "2", "--thresholds", "0.2", "--json", "--solver"]

    def notes(*more: str) -> list[str]:
        done = CliRunner().invoke(app, [*command, *more], catch_exceptions=False)
        return [note for note in json.loads(done.stdout)["notes"] if note.startswith("the deadline")]

    assert notes("eplb", "--deadline", "0.02") == []
    (cut,) = notes("moesim", "--deadline", "0.02")
    found = re.match(r"the deadline of 0.02 s a plan cut the search of (\d+) of (\d+) plans short", cut)
    assert found is not None
    assert 1 < int(found[1]) == int(found[2])


def test_a_study_says_which_plans_of_its_rule_the_deadline_cut(trace: Trace):
    settings = {
        "trace": "drift.parquet", "topology": "h100-1x8", "tokens_per_rank": 32, "block_steps": 3, "cycles": 1,
        "interval": 4, "solver": "moesim",
    }  # fmt: skip
    chosen = RebalanceSettings(**settings)
    shared = {chosen.trace_key: trace, chosen.cluster_key: Cluster.preset("h100-1x8")}
    told = {seconds: run({**settings, "deadline_s": seconds}, Path(), shared)["notes"] for seconds in (0.01, 0.02)}
    for seconds, notes in told.items():
        assert f"the deadline of {seconds:g} s a plan cut the search of 3 of 3 plans short" in notes


def test_a_world_plans_within_the_deadline_of_the_other_verbs(world: World):
    assert world.deadline_s == 60.0
    assert cut_note(0, 9, 60.0) == ()
    assert cut_note(1, 1, 60.0)[0].startswith("the deadline of 60 s a plan cut the search of 1 of 1 plan short")


def test_a_study_says_what_its_seconds_are_of(trace: Trace):
    settings = {"trace": "drift.parquet", "topology": "h100-1x8", "tokens_per_rank": 32, "block_steps": 3, "cycles": 1}
    chosen = RebalanceSettings(**settings)
    assert trace.routes is not None
    alike = dataclasses.replace(trace, routes=np.repeat(trace.routes[:, :1], 3, axis=1))
    rows = {}
    for layers in (1, 3):
        part = alike.of_layers(list(range(layers)))
        shared = {chosen.trace_key: part, chosen.cluster_key: Cluster.preset("h100-1x8")}
        for stall_s in (0.0, 0.5):
            row = rows[layers, stall_s] = run({**settings, "stall_s": stall_s}, Path(), shared)
            assert "expert compute by roofline" in row["notes"]
    assert "moves and bytes are of 1 of 3 MoE layers: of the whole" in rows[1, 0.0]["notes"]
    assert "MoE layers" not in rows[3, 0.0]["notes"]
    for stall_s in (0.0, 0.5):
        some, every = rows[1, stall_s], rows[3, stall_s]
        assert some["saved_share"] == pytest.approx(every["saved_share"], abs=0.02)
        assert 3 * some["stopped_s"] == pytest.approx(every["stopped_s"], rel=0.1)
    assert rows[1, 0.5]["saved_share"] < rows[1, 0.0]["saved_share"] - 0.05
