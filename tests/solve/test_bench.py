"""The benchmark judges plans on requests they have not seen, and says the same as the plans themselves."""

from __future__ import annotations

import json
from pathlib import Path

from moesim.solve.bench import bench, table, write_rows
from tests.solve.conftest import tiny_cluster, tiny_spec, tiny_trace


def test_rows_hold_eplb_and_moesim_under_every_policy(tmp_path: Path) -> None:
    trace, cluster = tiny_trace(tiny_spec(), 1024), tiny_cluster()
    rows = bench(
        trace, cluster, slots_per_rank=3, solvers=("eplb", "moesim"), policies=("nearest", "token-aware"),
        tokens_per_rank=64, jobs=1, options={"moesim": {"effort": 2e5}},
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
