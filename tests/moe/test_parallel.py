"""Expert-parallel training on gloo processes is the training of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo import CONFIG, RECIPE, ROUTERS, batches, scenario

import moesim
from moesim.base.errors import InputError
from moesim.moe.experts import Experts
from moesim.moe.parallel import ALONE, Group
from moesim.moe.run import Run
from moesim.trace import TRAIN, Trace

# what is started must import the package that is tested here
HERE = os.environ | {"PYTHONPATH": str(Path(moesim.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gloo")


@pytest.fixture(scope="module")
def alone(folder) -> dict:
    torch.set_num_threads(1)
    return scenario(ALONE, folder)


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 4])
def together(request, alone, folder) -> tuple[int, list[dict]]:
    size = request.param
    script = [sys.executable, str(Path(__file__).with_name("gloo.py")), str(size), str(folder)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False, env=HERE)
    assert done.returncode == 0, done.stderr
    return size, [torch.load(folder / f"found-{size}-{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.mark.parametrize("name", [*ROUTERS, "one expert", "no experts", "parts"])
def test_processes_that_share_experts_train_as_one_process_does(alone, together, name):
    _, everybody = together
    expected, got = alone[name], everybody[0][name]
    for mine, theirs in zip(expected["metrics"], got["metrics"], strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=2e-4)
        assert theirs["gradient_norm"] == pytest.approx(mine["gradient_norm"], rel=1e-3)
        assert theirs["auxiliary"] == pytest.approx(mine["auxiliary"], abs=2e-4)
        for figure in ("max_over_mean", "min_over_mean", "dropped"):
            assert theirs[figure] == pytest.approx(mine[figure], abs=2e-3), figure
    for key, tensor in expected["model"].items():
        assert torch.allclose(got["model"][key], tensor, rtol=1e-3, atol=1e-4), key


def test_all_processes_report_the_same(together):
    _, everybody = together
    for name in (*ROUTERS, "one expert", "no experts", "parts"):
        for other in everybody[1:]:
            for a, b in zip(everybody[0][name]["metrics"], other[name]["metrics"], strict=True):
                assert {k: v for k, v in a.items() if k not in {"tokens_per_s"}} == {
                    k: v for k, v in b.items() if k not in {"tokens_per_s"}
                }


def test_a_resumed_run_of_several_processes_is_bit_equal(together):
    _, everybody = together
    assert all(one["went on"][0] == one["went on"][1] for one in everybody)
    assert all(one["bit-equal"] for one in everybody)


def test_checkpoints_do_not_remember_the_number_of_processes(alone, together, folder):
    size, everybody = together
    # the checkpoint of one process, taken up by several, and the other way round
    assert everybody[0]["from one process"] == pytest.approx(alone["went on"][0], abs=2e-4)
    run = Run(CONFIG, RECIPE, batches())
    run.resume(folder / f"of-{size}.pt")
    assert [run.advance()["loss"] for _ in range(2)] == pytest.approx(everybody[0]["went on"][0], abs=2e-4)


def test_each_domain_is_evaluated_as_by_one_process(alone, together):
    _, everybody = together
    for one in everybody:
        assert one["evaluation"] == pytest.approx(alone["evaluation"], abs=2e-3)


def test_the_trace_of_training_knows_which_process_held_a_token(alone, together, folder):
    size, _ = together
    mine, theirs = (Trace.read(folder / f"of-{n}.parquet") for n in (1, size))
    assert mine.tokens == theirs.tokens == 2 * 8 * 16
    assert np.unique(theirs.step).tolist() == [0, 2]
    assert (theirs.phase == TRAIN).all()
    assert (mine.source == -1).all()
    assert theirs.source[:128].reshape(8, 16)[:, 0].tolist() == [row // (8 // size) for row in range(8)]
    for column in ("step", "request", "position", "domain"):
        assert np.array_equal(getattr(mine, column), getattr(theirs, column)), column
    # near ties may fall either way after the first step
    first = mine.step == 0
    assert np.array_equal(mine.routes[first], theirs.routes[first])
    assert (mine.routes == theirs.routes).mean() > 0.99


def test_rows_travel_in_the_precision_of_the_products(alone, together):
    _, everybody = together
    assert everybody[0]["bfloat16"] == pytest.approx(alone["bfloat16"], rel=2e-2)


def test_experts_must_divide_into_processes():
    with pytest.raises(InputError, match="3 processes do not divide 8 experts"):
        Experts(CONFIG, Group(0, 3))


def test_rows_must_divide_into_processes_and_parts():
    with pytest.raises(InputError, match="does not divide into processes times parts, 4 x 4"):
        Run(CONFIG, replace(RECIPE, accumulate=4), batches(), group=Group(0, 4))
