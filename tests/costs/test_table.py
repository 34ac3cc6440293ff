"""The kernel cost table: exact on its grid, between its neighbours elsewhere, and silent about nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import FormatError, InputError
from moesim.costs import Costs

from .worlds import SPEC, cluster

NODE = cluster(1, 2)
TOKENS, ACTIVE = (16, 64, 256), (1, 4)


def content(**changes: Any) -> dict[str, Any]:
    rows = [
        {"tokens_per_expert": m, "active_experts": a, "seconds": 1e-6 * a * max(m, 32)} for m in TOKENS for a in ACTIVE
    ]
    table = {
        "schema": 1, "kind": "moesim-kernel-table", "device": "H100-SXM", "dtype": "fp8", "hidden": 1024,
        "intermediate": 512, "kernel": "a grouped gemm", "provenance": {"driver": "550"}, "rows": rows,
    }  # fmt: skip
    return table | changes


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "kernels.json"
    path.write_text(json.dumps(content(**changes)))
    return path


def seconds(costs: Costs, slots: list[float]) -> float:
    return float(costs.experts_s(np.array([[slots, [0] * len(slots)]]))[0, 0])


def test_grid_points_are_exact_and_the_rest_lies_between(tmp_path: Path):
    costs = Costs.default(SPEC, NODE, compute=write(tmp_path))
    assert seconds(costs, [64]) == pytest.approx(64e-6)
    assert seconds(costs, [256] * 4) == pytest.approx(1024e-6)
    assert 64e-6 < seconds(costs, [100]) < 256e-6
    # log-log: the middle of the logarithms is the geometric mean
    assert seconds(costs, [128]) == pytest.approx(128e-6)
    assert seconds(costs, [64, 64]) == pytest.approx(128e-6)
    # below the first point weights and launches decide: its time stays
    assert seconds(costs, [1]) == pytest.approx(32e-6)
    assert seconds(costs, [0]) == 0.0


@settings(deadline=None)
@given(st.lists(st.integers(0, 256), min_size=1, max_size=4))
def test_unequal_slots_lie_between_equal_ones(tmp_path_factory: pytest.TempPathFactory, slots: list[int]):
    costs = Costs.default(SPEC, NODE, compute=write(tmp_path_factory.mktemp("table")))
    busy = [m for m in slots if m]
    if busy:
        low, high = (seconds(costs, [m] * len(busy)) for m in (min(busy), max(busy)))
        assert low * (1 - 1e-9) <= seconds(costs, slots) <= high * (1 + 1e-9)


def test_it_refuses_to_extrapolate(tmp_path: Path):
    costs = Costs.default(SPEC, NODE, compute=write(tmp_path))
    with pytest.raises(InputError, match="257 tokens per expert asked for, measured up to 256; extend the table"):
        seconds(costs, [257])
    with pytest.raises(InputError, match="5 active experts asked for, measured up to 4"):
        seconds(costs, [16] * 5)


def test_costs_say_what_was_measured(tmp_path: Path):
    path = write(tmp_path)
    costs = Costs.default(SPEC, NODE, compute=str(path))
    assert "measured on H100-SXM" in costs.notes[0]
    assert costs.sources["compute: kernel table"] == "measured: kernels.json (driver 550)"
    other = Costs.default(SPEC, NODE, compute=write(tmp_path, provenance={"driver": "560"}))
    assert costs.digest != other.digest
    # the same table elsewhere is the same table
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(content(provenance={"driver": "560"})))
    assert Costs.default(SPEC, NODE, compute=copy).digest == other.digest


def test_a_model_without_gate_is_told_that_tables_have_one(tmp_path: Path):
    path = write(tmp_path)
    plain = Costs.default(dataclasses.replace(SPEC, gated=False), NODE, compute=path)
    assert any("has no gate" in note for note in plain.notes)
    assert not any("gate;" in note for note in Costs.default(SPEC, NODE, compute=path).notes)


@pytest.mark.parametrize(
    ("changes", "place", "message"),
    [
        ({"schema": 2}, "schema", "got 2"),
        ({"kind": "profile"}, "kind", "got 'profile'"),
        ({"hidden": 2048}, "hidden", "expected 1024 .small., got 2048; measure this shape"),
        ({"dtype": "bf16"}, "dtype", "expected fp8 .small., got 'bf16'"),
        ({"device": "A100-SXM"}, "device", "expected H100-SXM"),
        ({"device": "Other"}, "device", "expected H100-SXM"),
        ({"rows": []}, "rows", "at least 1"),
        ({"rows": [{"tokens_per_expert": 1, "active_experts": 1, "seconds": -1}]}, "rows.0.seconds", "greater than 0"),
        ({"rows": content()["rows"][:-1]}, "rows", "256 tokens per expert with 4 active experts is missing"),
        ({"rows": content()["rows"] * 2}, "rows", "is given twice"),
        ({"surprise": 1}, "surprise", "not permitted"),
    ],
)
def test_bad_tables_are_one_line_that_names_the_place(tmp_path: Path, changes: dict, place: str, message: str):
    with pytest.raises(FormatError, match=message) as error:
        Costs.default(SPEC, NODE, compute=write(tmp_path, **changes))
    assert error.value.place == place
    assert "\n" not in str(error.value)


def test_files_that_are_no_table(tmp_path: Path):
    with pytest.raises(FormatError, match="cannot be read"):
        Costs.default(SPEC, NODE, compute=tmp_path / "absent.json")
    half = tmp_path / "half.json"
    half.write_text(json.dumps(content())[:100])
    with pytest.raises(FormatError, match="invalid JSON"):
        Costs.default(SPEC, NODE, compute=half)
    with pytest.raises(InputError, match="give the path of a kernel cost table"):
        Costs.default(SPEC, NODE, compute="table")
