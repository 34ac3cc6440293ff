"""The benchmark judges plans on requests they have not seen, and says the same as the plans themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.base.errors import InputError
from moesim.solve import Objective
from moesim.solve.bench import ABLATIONS, bench, table, write_rows
from tests.solve.conftest import tiny_cluster, tiny_spec, tiny_trace


def test_rows_hold_eplb_and_moesim_under_every_policy(tmp_path: Path) -> None:
    trace, cluster = tiny_trace(tiny_spec(), 1024), tiny_cluster()
    rows = bench(
        trace, cluster, slots_per_rank=3, solvers=("eplb", "moesim"), policies=("nearest", "token-aware"),
        tokens_per_rank=64, jobs=1, options={"moesim": {"effort": 2e6}},
    )  # fmt: skip
    assert [(row["policy"], row["solver"]) for row in rows] == [
        ("nearest", "eplb"), ("nearest", "moesim"), ("token-aware", "eplb"), ("token-aware", "moesim"),
    ]  # fmt: skip
    for theirs, ours in (rows[:2], rows[2:]):
        assert ours["fitted_step_s"] <= theirs["fitted_step_s"]
        for row in (theirs, ours):
            assert 0 <= row["copies"] <= 1  # two nodes
            assert 0 < row["balance"] <= 1
            assert row["step_s"] > 0
    # the fewest nodes per token: never more than the nearest copies visit
    assert rows[2]["copies"] <= rows[0]["copies"]
    shown = table(rows).splitlines()
    assert len(shown) == 6
    assert "| `eplb` |" in shown[2]
    assert "| 1.00 |" in shown[2]
    write_rows(rows, tmp_path / "rows.jsonl")
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows


def test_ablation_leaves_out_one_part_at_a_time_and_says_what_the_clock_cut() -> None:
    trace, cluster = tiny_trace(tiny_spec(1, 32, 4), 2048), tiny_cluster(4, 2)
    rows = bench(
        trace, cluster, slots_per_rank=5, solvers=("eplb", "moesim"), policies=("nearest",), tokens_per_rank=64, jobs=1,
        options={"moesim": {"effort": 2e7}}, ablate=True,
    )  # fmt: skip
    by_name = {row["solver"]: row for row in rows}
    assert set(by_name) == {"eplb", *ABLATIONS}
    # without annealing only baselines are left to choose from
    assert by_name["moesim"]["fitted_step_s"] < by_name["moesim, no annealing"]["fitted_step_s"]
    assert not any(row["cut"] for row in rows)
    assert "| `moesim`, no annealing |" in table(rows)
    assert "| `moesim` (cut by the clock) |" in table([by_name["moesim"] | {"cut": True}])


def test_domains_that_no_plan_has_seen_can_judge() -> None:
    trace, cluster = tiny_trace(tiny_spec(), 1024), tiny_cluster()
    rows = np.arange(trace.rows)
    split = replace(trace, domain=rows % 4, domains=("a", "b", "c", "d"))
    fitted, held_out = split.split(0.5, by="domain", seed=3)
    assert not set(fitted.domain) & set(held_out.domain)
    assert fitted.rows + held_out.rows == trace.rows
    found = bench(
        split, cluster, slots_per_rank=3, solvers=("lpt", "moesim"), policies=("nearest",), tokens_per_rank=32, jobs=1,
        by="domain", objective=Objective(aim="load"), options={"moesim": {"effort": 2e6}},
    )  # fmt: skip
    assert [row["solver"] for row in found] == ["lpt", "moesim"]
    with pytest.raises(InputError, match="at least two domains"):
        trace.split(0.5, by="domain")
