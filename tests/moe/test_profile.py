"""The profiler: honest labels, journals that survive a kill, tables that the cost model reads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from moesim.base.errors import InputError, UnknownName
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.costs.table import read_tables
from moesim.moe.profile import Plan, others, profile, run
from moesim.moe.profile.device import find_device, provenance
from moesim.moe.profile.experts import Case, measure
from moesim.moe.profile.grid import cases, shape_of
from moesim.moe.profile.tables import full_grid, summary
from moesim.moe.profile.timing import Clock

TINY = Plan(models=("bundled",), tokens=(4, 1), active=(1, 2), seconds=0.001, small=True)


@pytest.fixture(autouse=True)
def not_interpreted(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def cpu():
    return find_device("cpu")


def test_a_cpu_is_never_called_a_gpu(tmp_path, cpu):
    found = profile(tmp_path, TINY, device="cpu")
    assert not found["gpu"]
    assert found["device"].startswith("CPU, ")
    assert found["complete"]
    assert "driver" not in found["provenance"]
    # kernels that only an interpreter could run here are not timed
    assert {row["kernel"] for row in found["experts"]} <= {"torch loop", "torch grouped_mm"}
    held = read_tables(tmp_path / "kernel-tables.json")
    assert {table.device for table in held.tables} == {found["device"]}


def test_a_cluster_of_gpus_refuses_the_tables_of_a_cpu(tmp_path):
    profile(tmp_path, TINY, device="cpu")
    spec = shape_of("bundled")
    cluster = Cluster.read("h200-4x8-rail")
    with pytest.raises(InputError, match=r"device: expected .*H200.*, got 'CPU, "):
        Costs.default(spec, cluster, compute=tmp_path / "kernel-tables.json")


def test_an_interpreter_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(InputError, match="an interpreter's times are no device's"):
        profile(tmp_path, TINY, device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_misspelt_model_is_told_before_anything_is_measured(tmp_path):
    said: list[str] = []
    with pytest.raises(UnknownName, match="did you mean 'deepseek-v3'"):
        profile(tmp_path / "out", replace(TINY, models=("bundled", "deepsek-v3")), device="cpu", say=said.append)
    assert not said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(("name", "message"), [("cuda", "no GPU for device 'cuda'"), ("gpu0", "unknown device 'gpu0'")])
def test_a_device_that_is_not_there_is_an_error(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        profile(tmp_path, TINY, device=name)


def test_a_killed_run_goes_on_and_measures_nothing_twice(tmp_path, monkeypatch):
    real, calls = run.measure, []

    def dies(case, *rest, **options):
        calls.append(case)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(case, *rest, **options)

    monkeypatch.setattr(run, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        profile(tmp_path, TINY, device="cpu")
    journal = tmp_path / "rows.jsonl"
    # a kill in the middle of a line
    journal.write_text(journal.read_text() + '{"kind": "experts", "row": {"ker')
    found = profile(tmp_path, TINY, device="cpu")
    again = [case for case in calls[3:] if case in calls[:2]]
    assert not again
    assert len({json.dumps(row) for row in found["experts"]}) == len(found["experts"]) == len(calls) - 1
    before = len(calls)
    assert profile(tmp_path, TINY, device="cpu")["experts"] == found["experts"]
    assert len(calls) == before


def test_a_journal_of_another_device_is_not_mixed_in(tmp_path):
    profile(tmp_path, TINY, device="cpu")
    journal = tmp_path / "rows.jsonl"
    lines = journal.read_text().splitlines()
    head = json.loads(lines[0])
    head["provenance"]["device"] = "NVIDIA H200"
    journal.write_text("\n".join([json.dumps(head), *lines[1:]]) + "\n")
    with pytest.raises(InputError, match=r"measured with another device \(NVIDIA H200, now CPU"):
        profile(tmp_path, TINY, device="cpu")


def test_a_budget_ends_the_run_with_whole_lines(tmp_path, monkeypatch):
    plan = replace(TINY, tokens=(1, 2, 4), active=(1, 2), minutes=1.0)
    times = iter([0.0] * 6 + [1e3] * 100)
    monkeypatch.setattr(run.time, "monotonic", lambda: next(times))
    found = profile(tmp_path, plan, device="cpu")
    assert not found["complete"]
    tables = json.loads((tmp_path / "kernel-tables.json").read_text())["tables"]
    points = {(row["tokens_per_expert"], row["active_experts"]) for row in tables[0]["rows"]}
    assert points == {(m, a) for m in {m for m, _ in points} for a in {a for _, a in points}}
    assert len(points) < 6


def test_the_largest_full_grid_is_kept():
    rows = dict.fromkeys([(1, 1), (1, 2), (1, 4), (4, 1), (4, 2), (4, 4), (16, 1)], 1.0)
    assert set(full_grid(rows)) == {(m, a) for m in (1, 4) for a in (1, 2, 4)}
    assert full_grid({}) == {}


def test_tables_say_where_they_come_from(cpu):
    facts = provenance(cpu)
    assert {"device", "torch", "triton", "python", "moesim", "commit", "command", "date"} <= set(facts)
    assert all(isinstance(value, str) and value for value in facts.values())


def test_every_kernel_computes_the_same_layer(cpu, monkeypatch):
    from moesim.moe.profile import experts

    case = Case("torch loop", "bf16", 32, 16, 5, 3)
    outputs = []
    for kernel in ("torch loop", "torch grouped_mm"):
        if kernel == "torch grouped_mm" and experts._grouped_mm() is None:
            continue
        whole, products = experts._Layer(replace(case, kernel=kernel), cpu, 0).calls()
        outputs.append(whole().float())
        assert torch.isfinite(products()).all()
    x, layer = outputs[0], experts._Layer(case, cpu, 0)
    expected = torch.zeros_like(x)
    for expert in range(3):
        mine = layer.chosen[:, 0] == expert
        assert int(mine.sum()) == 5
        gate, up = (layer.x[mine].double() @ layer.gate_up[expert].double()).chunk(2, -1)
        expected[mine] = ((torch.nn.functional.silu(gate) * up) @ layer.down[expert].double()).float()
    for output in outputs:
        assert (output - expected).norm() < 0.02 * expected.norm()


def test_rates_are_work_over_time(cpu):
    case = Case("torch loop", "bf16", 32, 16, 4, 2)
    assert case.flops == 2 * 4 * 2 * 3 * 32 * 16
    assert case.weight_bytes == 2 * 2 * 3 * 32 * 16
    row = measure(case, cpu, Clock(cpu, 0.001))
    assert row["seconds"] > 0
    assert not row["graph"]


def test_the_grid_holds_ours_everywhere_and_others_at_points():
    spec = shape_of("mixtral-8x7b")
    found = list(cases(spec, [("triton", "bf16"), ("triton", "fp8"), ("torch loop", "bf16")], (1, 2, 16), (1, 8, 64)))
    ours = {(c.dtype, c.tokens_per_expert, c.active_experts) for c in found if c.kernel == "triton"}
    # no rank of this model holds more experts than it has
    assert ours == {(d, m, a) for d in ("bf16", "fp8") for m in (1, 2, 16) for a in (1, 8)}
    assert {(c.tokens_per_expert, c.active_experts) for c in found if c.kernel != "triton"} == {(1, 8), (16, 8)}


def test_the_summary_sets_rates_against_the_ceilings_of_the_same_run():
    shape = {"dtype": "bf16", "hidden": 4096, "intermediate": 14336, "spread": 0.0}
    rows = [
        shape | {"kernel": "triton", "tokens_per_expert": 512, "active_experts": 8, "seconds": 2.0,
                 "flops_per_s": 6e14, "weight_bytes_per_s": 1e11},
        shape | {"kernel": "triton", "tokens_per_expert": 1, "active_experts": 8, "seconds": 1.0,
                 "flops_per_s": 1e12, "weight_bytes_per_s": 3e12},
        shape | {"kernel": "torch grouped_mm", "tokens_per_expert": 512, "active_experts": 8, "seconds": 3.0,
                 "flops_per_s": 4e14, "weight_bytes_per_s": 1e11},
    ]  # fmt: skip
    made = summary({"experts": rows, "ceilings": {"copy_bytes_per_s": 4e12, "gemm_bf16_flops": 8e14}})
    ours = next(row for row in made if row["kernel"] == "triton")
    assert (ours["share_of_gemm"], ours["share_of_copy"], ours["grouped_mm_over_ours"]) == (0.75, 0.75, 1.5)


def test_all_to_all_is_measured_over_processes(cpu):
    rows = others.all_to_all(cpu, processes=2, sizes=(1024, 65536))
    assert [(row["backend"], row["processes"]) for row in rows] == [("gloo", 2)] * 2
    assert all(row["seconds"] > 0 for row in rows)
    assert others.all_to_all(cpu) == []


def test_all_to_all_says_when_a_process_fails_and_does_not_wait_for_it(cpu):
    with pytest.raises(InputError, match="all-to-all of 2 processes over gloo failed"):
        others.all_to_all(cpu, processes=2, sizes=("many",))


def test_attention_and_permute_move_what_they_say(cpu):
    clock = Clock(cpu, 0.001)
    row = next(others.permutes(cpu, clock, 64, (8,), 2))
    assert row["bytes_per_s"] * row["seconds"] == pytest.approx(2 * 8 * 3 * 64)
    found = list(others.attentions(cpu, clock, shape_of("bundled"), (2,), (16,)))
    assert [row["phase"] for row in found] == ["prefill", "decode"]
