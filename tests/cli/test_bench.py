"""`moesim bench solve` fits on one part, judges on the other, and beats EPLB on the bundled trace."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from moesim.cli.app import app
from tests.solve.conftest import tiny_spec, tiny_trace


def test_every_solver_is_judged_under_every_policy(tmp_path: Path) -> None:
    trace = tmp_path / "trace.parquet"
    tiny_trace(tiny_spec(experts=16), 2048).write(trace)
    given = ["bench", "solve", str(trace), "--slots-per-rank", "1", "--policy", "nearest,token-aware", "--jobs", "1"]
    given += ["--solver", "eplb,eplb-hierarchical,moesim", "--effort", "1e5,1e6", "--layers", "1", "--deadline", "600"]
    rows_file = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(app, [*given, "--tokens-per-rank", "16", "--json", "-o", str(rows_file)])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    # the model has no groups: no hierarchical EPLB
    assert [row["solver"] for row in rows] == 2 * ["eplb", "moesim 100000", "moesim 1e+06"]
    assert [json.loads(line) for line in rows_file.read_text().splitlines()] == rows
    for row in rows:
        assert 0 < row["balance"] <= 1
        assert row["gap"] >= 0
    table = CliRunner().invoke(app, [*given, "--tokens-per-rank", "16"])
    assert "| `token-aware` | `moesim 100000` |" in table.stdout


def test_wrong_numbers_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace.parquet"
    tiny_trace(tiny_spec(), 64).write(trace)
    result = CliRunner().invoke(app, ["bench", "solve", str(trace), "--layers", "first"])
    assert result.exit_code == 1
    assert "--layers: expected numbers" in str(result.exception)
