"""Shapes that were not measured, predicted from those that were."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.base.errors import FormatError, InputError
from moesim.costs import Costs, transfer
from moesim.costs.table import read_table, read_tables

from .test_table import content
from .worlds import SPEC, cluster

MEASURED = Path(__file__).parents[3] / "shared/data/measurements/fused_moe_hopper.csv"
NODE = cluster(1, 2)
GRID = [(m, a) for m in (1, 8, 64, 512, 4096) for a in (1, 4, 16)]


def made_up(hidden: int, intermediate: int) -> list[tuple[float, int, float]]:
    """Rows of a device that does exactly what a roofline says: for the plumbing, no measurement of anything."""
    return [
        (m, a, 2e-5 + max(6.0 * m * a * hidden * intermediate / 6e14, 6.0 * a * hidden * intermediate / 3e12))
        for m, a in GRID
    ]


def rows(*shapes: tuple[int, int]) -> transfer.Rows:
    return transfer.columns([(*shape, made_up(*shape)) for shape in shapes])


def tables_file(folder: Path, *shapes: tuple[int, int], **changes: object) -> Path:
    tables = [
        content(hidden=h, intermediate=i, rows=[
            {"tokens_per_expert": m, "active_experts": a, "seconds": s} for m, a, s in made_up(h, i)
        ])
        for h, i in shapes
    ]  # fmt: skip
    path = folder / "tables.json"
    path.write_text(json.dumps({"schema": 1, "kind": "moesim-kernel-tables", "tables": tables} | changes))
    return path


def test_a_shape_of_the_fit_is_met_closely_and_one_between_lies_between():
    model = transfer.fit(rows((2048, 1024), (4096, 4096), (8192, 2048)), 2.0, 132)
    m, a, seconds = (np.array(column) for column in zip(*made_up(4096, 4096), strict=True))
    assert np.abs(model.seconds(m, a, 4096, 4096) / seconds - 1).mean() < 0.06
    low, middle, high = (model.seconds(64.0, 4.0, 4096, width) for width in (1024, 2048, 4096))
    assert low < middle < high


def test_leaving_a_shape_out_uses_nothing_of_it():
    given = rows((2048, 1024), (4096, 4096), (8192, 2048))
    own = given.hidden == 8192
    spoilt = replace(given, seconds=np.where(own, given.seconds * 10, given.seconds))
    honest, blind = transfer.leave_out(given, 2.0, 132), transfer.leave_out(spoilt, 2.0, 132)
    assert honest[8192, 2048][1] < 0.2
    # the same prediction against times ten times as long
    assert blind[8192, 2048][2] == pytest.approx((honest[8192, 2048][2] + 1) / 10 - 1)


def test_one_shape_alone_predicts_nothing():
    with pytest.raises(InputError, match="measure a second one"):
        transfer.leave_out(rows((2048, 1024)), 2.0, 132)


@pytest.mark.parametrize(
    ("kernel", "bound"),
    [("moe_torch_flow_cutlass", 0.04), ("vllm_unquantizedfusedmoe_triton_tritonexperts", 0.10)],
)
@pytest.mark.parametrize("system", ["h100_sxm", "h200_sxm"])
def test_measured_kernels_are_predicted_for_shapes_left_out(kernel, bound, system):
    """NVIDIA's own measurements of other people's kernels in bf16: Qwen3-30B and -235B, Mixtral 8x7B and 8x22B."""
    if not MEASURED.exists():
        pytest.skip(f"the measured table {MEASURED.name} is not here; it is not part of the project")
    found = defaultdict(dict)
    with MEASURED.open() as file:
        for row in csv.DictReader(file):
            wanted = (kernel, "bfloat16", system, "balanced", "1")
            keys = ("kernel_source", "moe_dtype", "system", "distribution", "moe_ep_size")
            if tuple(row[key] for key in keys) == wanted:
                picks = int(row["num_tokens"]) * int(row["topk"])
                active = min(int(row["num_experts"]), picks)
                shape = int(row["hidden_size"]), int(row["inter_size"])
                found[shape][picks / active, active] = float(row["latency_ms"]) * 1e-3
    columns = transfer.columns([(*s, [(m, a, t) for (m, a), t in v.items()]) for s, v in found.items()])
    errors = transfer.leave_out(columns, 2.0, 132)
    assert len(errors) == 4
    assert np.mean([error for _, error, _ in errors.values()]) < bound


def test_a_file_of_tables_gives_the_measured_shape_or_says_that_it_predicts(tmp_path: Path):
    other = [(2048, 1024), (4096, 2048), (512, 256)]
    slots = np.array([[[64.0, 64.0, 0.0]] * 2])
    measured = Costs.default(SPEC, NODE, compute=tables_file(tmp_path, (1024, 512), *other))
    assert "measured on H100-SXM" in measured.notes[0]
    exact = float(measured.experts_s(slots)[0, 0])
    predicted = Costs.default(SPEC, NODE, compute=tables_file(tmp_path, *other))
    assert "was not measured: predicted from 512 x 256, 2048 x 1024, 4096 x 2048" in predicted.notes[0]
    assert "left out, is predicted with a mean error of" in predicted.notes[0]
    assert float(predicted.experts_s(slots)[0, 0]) == pytest.approx(exact, rel=0.4)
    assert predicted.digest != measured.digest
    with pytest.raises(InputError, match="5000 tokens per expert asked for, measured up to 4096"):
        predicted.experts_s(np.array([[[5000.0]]]))
    assert float(predicted.experts_s(np.zeros((1, 1, 3)))[0, 0]) == 0.0


def test_files_of_tables_that_are_refused(tmp_path: Path):
    with pytest.raises(FormatError, match="one table a shape and dtype"):
        read_tables(tables_file(tmp_path, (2048, 1024), (2048, 1024)))
    with pytest.raises(FormatError, match="expected one kernel cost table, found 2"):
        read_table(tables_file(tmp_path, (2048, 1024), (4096, 1024)))
    with pytest.raises(FormatError, match="got 2048; measure this shape"):
        Costs.default(SPEC, NODE, compute=tables_file(tmp_path, (2048, 1024)))
    with pytest.raises(FormatError, match="at least 1"):
        read_tables(tables_file(tmp_path, tables=[]))
