"""The runner: rows of a table become cases, what cannot be scored is counted, and errors are what they say."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from moesim.base.errors import FormatError, InputError, UnknownName
from moesim.cli.app import app
from moesim.validate import Case, validate
from moesim.validate.loads import balanced_rank, power_law, strided
from moesim.validate.score import result

COLUMNS = ("system", "op_name", "num_gpus", "size_bytes_total", "latency_us", "role")


def write(folder: Path, rows: list[tuple[object, ...]], name: str = "nccl_single_node") -> Path:
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    size = 512 << 20
    return write(
        tmp_path,
        [
            ("h100_sxm", "alltoall", 8, size, 1468.6, "calibrate"),
            ("h100_sxm", "alltoall", 8, size, 1490.4, "holdout"),
            ("h100_sxm", "alltoall", 8, 512, 7.4, "holdout"),
            ("h100_sxm", "all_reduce", 8, size, 2000.0, "holdout"),
            ("l40s", "alltoall", 8, size, 9000.0, "holdout"),
        ],
    )


def test_each_row_is_scored_or_counted_with_its_reason(folder: Path):
    found = validate(folder)
    assert [case.role for case in found.cases] == ["calibrate", "holdout", "holdout"]
    assert [(count, reason) for _, reason, count in found.skipped] == [
        (1, "no constants of l40s"),
        (1, "no transport performs all_reduce"),
    ]


def test_scores_are_the_errors_of_their_rows(folder: Path):
    found = validate(folder)
    scores = {(score.table, score.role): score for score in found.scores}
    fitted = scores["nccl_single_node alltoall >= 1 MB", "calibrate"]
    assert (fitted.rows, fitted.mape) == (1, pytest.approx(abs(found.cases[0].error)))
    # 448 MB of a rank over 320 GB/s take 1468 us: the model must be near
    assert fitted.mape < 0.05
    assert fitted.worst[0] == found.cases[0]


def test_bias_keeps_the_sign_and_mape_does_not():
    cases = [Case("t", "holdout", str(i), 1.0, predicted, 2.0) for i, predicted in enumerate((0.5, 1.5, 1.3))]
    (score,) = result(cases).scores
    assert score.mape == pytest.approx(1.3 / 3)
    assert score.bias == pytest.approx(0.1)
    assert score.null_mape == pytest.approx(1.0)
    assert {case.label for case in score.worst[:2]} == {"0", "1"}


def test_the_verb_prints_stable_json(folder: Path):
    done = CliRunner().invoke(app, ["validate", "--data", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [list(row)[:6] for row in rows] == [["table", "role", "rows", "mape", "bias", "null_mape"]] * 3
    assert rows[0]["role"] == "calibrate"


def test_the_verb_prints_a_table_and_writes_the_figure(folder: Path, tmp_path: Path):
    page = tmp_path / "figure.html"
    done = CliRunner().invoke(app, ["validate", "--data", str(folder), "--worst", "--figure", str(page)])
    assert done.exit_code == 0, done.output
    assert "alltoall >= 1 MB" in done.stdout
    assert "no constants of l40s" in done.stdout
    assert "Predicted against measured" in page.read_text()


def test_errors_name_what_is_missing(folder: Path, tmp_path: Path):
    with pytest.raises(UnknownName, match="did you mean 'nccl_single_node'"):
        validate(folder, ["nccl_single_nod"])
    with pytest.raises(InputError, match="none of"):
        validate(tmp_path / "nowhere")
    (folder / "deepgemm_readme.csv").write_text("id,hardware\nG1,H800\n")
    with pytest.raises(FormatError, match=r"deepgemm_readme\.csv: header: expected columns \['kernel'"):
        validate(folder, ["deepgemm_readme"])


def test_a_broken_cell_costs_its_row_and_is_named(folder: Path):
    whole = validate(folder)
    file = folder / "nccl_single_node.csv"
    head, first, *rest = file.read_text().splitlines()
    broken = [
        "h100_sxm,alltoall,8,much,1.0,holdout",
        "h100_sxm,alltoall,8,512,-7,holdout",
        "h100_sxm,alltoall,8,512,nan,holdout",
        "h100_sxm,alltoall,8,512,0,holdout",
        "h100_sxm,alltoall,0,512,7,holdout",
        "h100_sxm,alltoall",
    ]
    # a byte order mark and columns nobody knows do no harm
    lines = [f"{head},extra", *(f"{line},x" for line in (first, *broken[:-1])), broken[-1], *rest]
    file.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    found = validate(folder)
    assert found.cases == whole.cases
    assert sum(count for _, _, count in found.skipped) == sum(count for _, _, count in whole.skipped) + len(broken)
    reasons = " | ".join(reason for _, reason, _ in found.skipped)
    assert "line 3: could not convert string to float: 'much'" in reasons
    assert "line 4: latency_us is negative: -7" in reasons
    assert re.search("measured nan, predicted .*, expected both above zero", reasons)


def test_a_broken_file_costs_itself_unless_it_is_asked_for(folder: Path):
    whole = validate(folder)
    (folder / "deepgemm_readme.csv").write_text("id,hardware\nG1,H800\n")
    (folder / "megamoe_layer_gb200.csv").write_bytes(b"\xff\xfe\x00,")
    found = validate(folder)
    assert found.cases == whole.cases
    reasons = {table: reason for table, reason, _ in found.skipped}
    assert "expected columns" in reasons["deepgemm_readme"]
    assert "expected CSV in UTF-8" in reasons["megamoe_layer_gb200"]


def test_nothing_to_score_is_an_error(tmp_path: Path):
    write(tmp_path, [("h100_sxm", "alltoall", 8, "much", 1.0, "holdout")])
    with pytest.raises(InputError, match=r"no row can be scored; nccl_single_node: line 2: .*much"):
        validate(tmp_path)


@pytest.mark.parametrize("fill_small", [False, True])
@pytest.mark.parametrize("tokens", [1, 16, 4096])
def test_power_law_loads_deal_every_pick_and_none_twice(tokens: int, fill_small: bool):
    counts = power_law(tokens, 256, 8, 1.2, np.random.default_rng(1), fill_small)
    assert counts.sum() == tokens * 8
    assert counts.min() >= 0
    assert counts.max() <= tokens


def test_eplb_loads_are_whole_and_near_the_mean_with_spare_slots():
    counts = power_law(8192, 256, 8, 1.2, np.random.default_rng(0))
    loads = balanced_rank(counts, 32, 288)
    assert loads.shape == (9,)
    assert (loads == np.floor(loads)).all()
    assert loads.sum() < 1.1 * counts.sum() / 32
    assert counts.reshape(32, -1).sum(axis=1).max() > 1.5 * loads.sum()


def test_balanced_routes_load_every_expert_alike():
    routes = strided(256, 8, 64)
    assert (np.bincount(routes.ravel(), minlength=256) == 2).all()
    assert (np.sort(routes, axis=1)[:, 1:] != np.sort(routes, axis=1)[:, :-1]).all()
