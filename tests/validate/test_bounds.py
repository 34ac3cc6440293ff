"""Bounds that the model keeps today on published rows; docs/validation.md holds the numbers they are from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from moesim.validate import Result, validate


@lru_cache
def scored(folder: Path, table: str) -> Result:
    return validate(folder / "measurements", [table])


BOUNDS = [
    ("alltoall_published", "alltoall_published DeepEP normal", "holdout", 0.10),
    ("alltoall_published", "alltoall_published DeepEP low latency", "holdout", 0.10),
    ("alltoall_published", "alltoall_published one-sided NVLink", "holdout", 0.10),
    ("alltoall_published", "alltoall_published NCCL EP low latency", "holdout", 0.10),
    ("alltoall_gb200_trtllm", "alltoall_gb200_trtllm", "holdout", 0.15),
    ("nccl_single_node", "nccl_single_node alltoall >= 1 MB", "calibrate", 0.06),
    ("nccl_single_node", "nccl_single_node alltoall >= 1 MB", "holdout", 0.10),
    ("megamoe_layer_gb200", "megamoe_layer_gb200 ratio >= 1536", "holdout", 0.06),
    ("megamoe_layer_gb200", "megamoe_layer_gb200 ratio <= 128", "holdout", 0.10),
    ("deepgemm_readme", "deepgemm_readme grouped", "holdout", 0.10),
    ("moe_layer_end_to_end", "moe_layer_end_to_end fused", "holdout", 0.20),
    ("moe_layer_end_to_end", "moe_layer_end_to_end DeepEP and DeepGEMM", "holdout", 0.20),
]


@pytest.mark.parametrize(("name", "table", "role", "limit"), BOUNDS, ids=[f"{t} {r}" for _, t, r, _ in BOUNDS])
def test_errors_stay_small_and_below_the_null(shared_data: Path, name: str, table: str, role: str, limit: float):
    (score,) = [s for s in scored(shared_data, name).scores if (s.table, s.role) == (table, role)]
    assert score.mape < limit, score.worst
    assert score.mape < score.null_mape


@pytest.mark.slow
def test_what_replicas_buy_in_expert_compute_is_within_a_tenth(shared_data: Path):
    (score,) = [s for s in scored(shared_data, "wideep_expert_compute").scores if "EPLB" in s.table]
    assert score.mape < 0.10
    assert score.mape < score.null_mape / 2


def test_skew_is_faster_where_it_was_measured_faster(shared_data: Path):
    cases = [c for c in scored(shared_data, "megamoe_layer_gb200").cases if "ratio" in c.table and c.measured < 0.95]
    assert len(cases) >= 40
    assert sum(case.predicted < 1 for case in cases) >= 0.95 * len(cases)


def test_effects_of_balance_and_overlap_have_the_right_sign(shared_data: Path):
    found = scored(shared_data, "balance_effects").cases
    cases = {case.label.split()[0]: case for case in found if "throughput" not in case.table}
    assert set(cases) == {"E02", "E09", "E10", "E11", "E12", "E13", "E14", "E81"}
    for name, case in cases.items():
        assert (case.measured > 1, case.measured < 1) == (case.predicted > 1, case.predicted < 1), name
    assert abs(cases["E81"].error) < 1e-12
    assert all(abs(case.error) < 0.45 for case in cases.values()), cases
    # whole models: tokens a second of published deployments
    whole = [case for case in found if "throughput" in case.table]
    assert len(whole) == 5
    assert all(abs(case.error) < 0.40 for case in whole), whole
