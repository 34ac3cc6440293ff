"""What a library error asks for in Python's words is asked for in those of the command line."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

from moesim.cli.flags import FORMAT_OPTIONS, OPTIONS, as_options
from moesim.cli.show import text
from moesim.trace.formats import TRACE_FORMATS

from .conftest import Run


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("give model= (its config.json)", "give --model (its config.json)"),
        ("found 3; give another model=", "found 3; give another --model"),
        ("give model=, or say it with numbering= (a)", "give --model, or say it with --format-option numbering= (a)"),
        ("give scale=1000000 or", "give --format-option scale=1000000 or"),
        ("give ranks= and spec= (the model)", "give --ranks and --model (the model)"),
        ("give both, rate= and requests= (how many)", "give both, --rate and --requests (how many)"),
        ("use placement.for_model(spec), part='a', t.model= x", "use placement.for_model(spec), part='a', t.model= x"),
    ],
)
def test_arguments_become_options(message: str, said: str):
    assert as_options(message) == said


def test_every_option_of_a_trace_format_is_known():
    for name in TRACE_FORMATS.names():
        given = list(inspect.signature(TRACE_FORMATS.get(name).read).parameters.values())[1:]
        named = {one.name for one in given if one.kind is not one.VAR_KEYWORD}
        assert named <= {*OPTIONS, *FORMAT_OPTIONS, "progress"}, name


def test_a_matrix_without_a_model_asks_for_options(run: Run, tmp_path: Path):
    path = tmp_path / "loads.npy"
    np.save(path, np.array([[0.5, 0.25, 0.25]]))
    done = run("import", path, "-o", tmp_path / "t.parquet")
    assert done.code == 1
    assert "give --model (" in done.err
    assert "model=" not in done.err


def test_a_folder_with_a_configuration_is_a_model(run: Run, tmp_path: Path):
    config = tmp_path / "config.json"
    config.write_text(
        '{"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,'
        ' "num_local_experts": 4, "num_experts_per_tok": 2, "num_attention_heads": 4, "num_key_value_heads": 2,'
        ' "vocab_size": 100}'
    )
    for what in (tmp_path, config):
        done = run("inspect", what, "--json")
        assert done.code == 0, done.err
        assert '"kind": "model"' in done.out


def test_plans_are_made_from_counts_and_say_so(run: Run, setting: list[str], tmp_path: Path):
    steps, whole = tmp_path / "steps.npy", tmp_path / "loads.npy"
    loads = np.random.default_rng(0).integers(50, 400, (3, 32, 8))
    np.save(steps, loads)
    np.save(whole, loads.sum(axis=0))
    model = ("--model", "mixtral-8x7b")
    done = run("solve", whole, *model, *setting, "--solver", "lpt", "-o", tmp_path / "plan.json")
    assert done.code == 0, done.err
    assert "note: drawn: only counts were recorded" in done.out
    done = run("compare", steps, *model, *setting, "--solver", "lpt,eplb")
    assert done.code == 0, done.err
    assert "fit steps drawn: only counts" in done.out
    assert "held-out steps drawn: only counts" in done.out
    assert run("compare", steps, *model, *setting, "--solver", "lpt", "--held-out", whole).code == 0
    done = run("compare", whole, *model, *setting, "--solver", "lpt")
    assert done.code == 1
    assert "split: needs at least two steps, the trace has 1; give a longer trace, or one to judge on" in done.err


def test_lists_of_equal_numbers_are_counted_and_ranges_are_not_doubled() -> None:
    assert text("rank_slots", [14, 14, 14, 14, 12, 12, 12, 12]) == "4 x 14, 4 x 12"
    assert text("rank_slots", [3, 4, 3]) == "3, 4, 3"
    assert text("latency_s", [1e-6, 1e-6]) == "1 us"
    assert text("bandwidth", (1e9, 2e9)) == "1 GB/s, 2 GB/s"
    assert text("unpicked_layers", []) == "-"
