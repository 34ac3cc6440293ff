"""The studies of docs/studies run as they stand, at small size."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from moesim.study.sweep import KINDS, read_study, sweep
from moesim.study.sweep.failure import FailureSettings
from moesim.study.sweep.moe_dense import MoeDenseSettings
from moesim.study.sweep.rebalance import RebalanceSettings
from moesim.study.sweep.serve import ServeSettings
from moesim.study.sweep.step import StepSettings
from moesim.study_report import study_html

FOLDER = Path(__file__).parents[2] / "docs" / "studies"
STUDIES = sorted(FOLDER.glob("*.toml"))
SETTINGS = {
    "step": StepSettings, "moe-dense": MoeDenseSettings, "rebalance": RebalanceSettings, "failure": FailureSettings,
    "serve": ServeSettings,
}  # fmt: skip


def test_there_are_studies_and_each_has_its_page():
    assert len(STUDIES) >= 7
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in STUDIES:
        page = path.with_suffix(".md").read_text(encoding="utf-8")
        assert f"moesim sweep docs/studies/{path.name}" in page
        assert f"({path.stem}.md)" in index


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_runs_at_small_size(path: Path, tmp_path: Path):
    study = read_study(path, smoke=True)
    assert 2 <= len(study.points) <= 12
    found = sweep(study, tmp_path, jobs=1)
    assert [row["status"] for row in found.rows] == ["done"] * len(study.points)
    for column in (*study.columns, *(name for front in study.pareto for name in (front.x, front.y))):
        assert any(column in row for row in found.rows), column
    assert study.name in study_html(found)
    # a result named like a setting would hide it as soon as a study varies it
    results = {name for path in (tmp_path / "rows").glob("*.parquet") for name in pq.read_schema(path).names}
    assert results - {"status"} <= {*KINDS.get(study.kind).RESULTS}
    # nor is a result announced that no point has
    if study.kind != "moe-dense":
        assert {*KINDS.get(study.kind).RESULTS} <= results
    assert not results & {*SETTINGS[study.kind].model_fields, "point"}


def test_every_kind_has_a_study_that_shows_how_its_results_are_named():
    kinds = {read_study(path).kind for path in STUDIES}
    assert kinds == {*SETTINGS} >= {*KINDS.names()}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_point_of_a_study_is_one_that_can_be_asked_for(path: Path):
    study = read_study(path)
    for point in study.points:
        assert KINDS.get(study.kind).needs(point, study.folder)
