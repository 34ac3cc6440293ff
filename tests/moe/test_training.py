"""`moesim train` as a user runs it: settings, resumption, evaluation, metrics, and a trace of training."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import moesim
from moesim.base.errors import FormatError
from moesim.cli.app import app
from moesim.cluster import Cluster
from moesim.moe.config import MoeConfig
from moesim.moe.corpus import DOMAINS, Document
from moesim.moe.corpus.pack import write_corpus
from moesim.moe.data import Batches
from moesim.moe.health import collapse, health
from moesim.moe.recipe import Recipe, read_settings
from moesim.moe.routers import ROUTERS
from moesim.moe.run import Run
from moesim.moe.train import train
from moesim.simulate import simulate
from moesim.solve import solve
from moesim.trace import PREFILL, TRAIN, Trace

# what is started must import the package that is tested here
HERE = os.environ | {"PYTHONPATH": str(Path(moesim.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
MODEL = MoeConfig(
    vocabulary=300, layers=2, hidden=16, heads=2, experts=8, top_k=2, intermediate=8, context=32, groups=4
)
RECIPE = Recipe(tokens=8 * 32 * 6, rows=8, warmup=2, save_every=2, seed=5)


@pytest.fixture
def corpus(tmp_path):
    text = "the cat sat on the mat and the dog sat on the log. " * 40
    documents = [
        Document(domain, part, i, f"{domain} {part} {text}")
        for part in ("train", "validation", "eval")
        for i, domain in enumerate(DOMAINS)
    ]
    write_corpus(documents, tmp_path / "corpus.parquet")
    return tmp_path


def settings(folder, **training):
    path = folder / "settings.json"
    model = {"vocabulary": 300, "layers": 2, "hidden": 16, "heads": 2, "experts": 8, "top_k": 2, "intermediate": 8,
             "context": 32, "groups": 4}  # fmt: skip
    path.write_text(json.dumps({"model": model, "training": {"tokens": 1536, "warmup": 2, "save_every": 2} | training}))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_metrics_evaluation_weights_and_a_trace(corpus):
    done = CliRunner().invoke(
        app,
        ["train", "--corpus", str(corpus), "-o", str(corpus / "run"), "--config", str(settings(corpus)), "--router",
         "switch", "--capacity-factor", "1", "--capture", str(corpus / "training.parquet"), "--capture-every", "2",
         "--evaluate-every", "2", "--weights"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    metrics = lines(corpus / "run/metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, 7))
    for line in metrics:
        assert set(line["auxiliary"]) == {"balance", "z"}
        for figure in ("max_over_mean", "min_over_mean", "entropy", "dead", "dropped"):
            assert len(line[figure]) == 2
    evaluations = lines(corpus / "run/evaluation.jsonl")
    assert [line["step"] for line in evaluations] == [2, 4, 6]
    assert set(evaluations[0]["domains"]) == set(DOMAINS)
    assert evaluations[-1]["loss"] < evaluations[0]["loss"]
    (said,) = re.findall(r"step 6: validation loss (\S+), mean of 8 domains", done.stderr)
    assert float(said) == pytest.approx(evaluations[-1]["loss"], abs=1e-3)
    trace = Trace.read(corpus / "training.parquet")
    assert np.unique(trace.step).tolist() == [0, 2, 4]
    assert (trace.phase == TRAIN).all()
    assert trace.spec.top_k == 1
    assert trace.weights is not None
    # what was dropped in a step, as the metrics of that step say
    for step in (0, 2, 4):
        dropped = (trace.routes[trace.step == step] < 0).mean(axis=(0, 2))
        assert dropped == pytest.approx(metrics[step]["dropped"], abs=1e-4)


def test_a_killed_run_goes_on_as_if_it_had_not_been(corpus):
    whole = train(corpus, corpus / "whole", config=MODEL, recipe=RECIPE, quiet=True)
    half = replace(RECIPE, tokens=RECIPE.tokens)
    run = corpus / "killed"

    class Killed(BaseException):
        pass

    def advance(self, taken=[0], step=Run.advance):  # noqa: B006
        taken[0] += 1
        if taken[0] == 4:
            raise Killed
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "advance", advance)
        with pytest.raises(Killed):
            train(corpus, run, config=MODEL, recipe=half, quiet=True)
    # three steps were taken, two are in the checkpoint
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    model = train(corpus, run, config=MODEL, recipe=half, quiet=True)
    for a, b in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    timeless = [
        [
            {k: v for k, v in line.items() if k not in {"tokens_per_s", "elapsed_s"}}
            for line in lines(f / "metrics.jsonl")
        ]
        for f in (corpus / "whole", run)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("router", ["noisy-topk", "switch"])
def test_resumption_is_bit_equal_with_noise_and_drops(router, tmp_path):
    rng = np.random.default_rng(0)
    batches = Batches({d: rng.integers(0, 300, 200) for d in DOMAINS}, rows=8, length=32, seed=5)
    config = replace(MODEL, router=router)
    whole, first = (Run(config, RECIPE, batches) for _ in range(2))
    expected = [whole.advance() for _ in range(4)]
    got = [first.advance() for _ in range(2)]
    first.save(tmp_path / "checkpoint.pt")
    second = Run(config, RECIPE, batches)
    second.resume(tmp_path / "checkpoint.pt")
    got += [second.advance() for _ in range(2)]
    assert [m["loss"] for m in got] == [m["loss"] for m in expected]
    assert [m["max_over_mean"] for m in got] == [m["max_over_mean"] for m in expected]
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path):
    rng = np.random.default_rng(0)
    batches = Batches({d: rng.integers(0, 300, 200) for d in DOMAINS}, rows=8, length=32, seed=5)
    # no losses over the batch, which parts do not see
    recipe = replace(RECIPE, balance_loss=0.0, z_loss=0.0)
    config = replace(MODEL, router="topk-softmax")
    whole, parts = Run(config, recipe, batches), Run(config, replace(recipe, accumulate=4), batches)
    for _ in range(3):
        a, b = whole.advance(), parts.advance()
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-4)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)
        assert a["max_over_mean"] == pytest.approx(b["max_over_mean"], abs=2e-3)


def test_collapse_shows_in_the_metrics(config):
    rng = np.random.default_rng(0)
    batches = Batches({d: rng.integers(0, 300, 200) for d in DOMAINS}, rows=8, length=32, seed=5)
    run = Run(replace(MODEL, router="topk-softmax"), replace(RECIPE, learning_rate=1e-6, warmup=1), batches)
    healthy = [run.advance() for _ in range(40)][-1]
    with torch.no_grad():
        # a gate that has learnt to answer one direction, with two experts on top whatever the token
        for router in run.model.routers():
            router.gate.weight.zero_()
            router.gate.weight[:2], router.gate.weight[2:] = 1.0, 1.0
            router.decide = lambda hidden, context, router=router: type(router).decide(
                router, torch.zeros_like(hidden), context
            )
    collapsed = [run.advance() for _ in range(60)][-1]
    assert max(healthy["dead"]) == 0
    assert min(healthy["entropy"]) > 0.9
    assert min(collapsed["dead"]) == 6 / 8
    assert max(collapsed["entropy"]) < 0.5
    assert collapse(healthy, RECIPE.warmup) == ""
    assert "75% of its experts have below 5% of the mean load; raise balance_loss" in collapse(collapsed, RECIPE.warmup)
    assert health(run.model.routers())["max_over_mean"] == collapsed["max_over_mean"]


def test_settings_in_toml_fill_both_tables(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('[model]\nrouter = "switch"\nexperts = 16\n[training]\ntokens = 5_000\n')
    model, recipe = read_settings(path)
    assert model == MoeConfig(router="switch", experts=16)
    assert recipe == Recipe(tokens=5000)
    (tmp_path / "config.json").write_text(MODEL.to_json())
    assert read_settings(tmp_path / "config.json") == (MODEL, Recipe())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[model]\nrouter = "switch"\nexpert = 16\n', r"model.expert: unknown key 'expert': did you mean 'experts'"),
        ("[training]\ntokens = 'many'\n", r"training.tokens: Input should be a valid integer.*found 'many'"),
        ("[model]\ntop_k = 65\n", r"top_k 65 must lie between 1 and experts 64"),
        ("[model\n", "expected settings in TOML"),
        (f"model = {9000 * '['}", "expected settings in TOML"),
        ("[training]\nrows = 0\n", "rows must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, text, message):
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(FormatError, match=message):
        read_settings(path)


def test_an_unknown_router_on_the_command_line_is_named(corpus):
    done = CliRunner().invoke(
        app, ["train", "--corpus", str(corpus), "-o", str(corpus / "run"), "--router", "swich", "--tokens", "10"]
    )
    assert done.exit_code != 0
    assert "did you mean 'switch'" in str(done.exception)


@pytest.mark.parametrize("router", ["switch", "expert-choice"])
def test_drops_and_choices_go_through_files_simulation_and_planning(corpus, router):
    config = replace(MODEL, router=router, capacity_factor=1.0)
    train(corpus, corpus / "run", config=config, recipe=RECIPE, quiet=True, capture=corpus / "training.parquet",
          capture_every=3)  # fmt: skip
    trace = Trace.read(corpus / "training.parquet")
    empty = trace.routes < 0
    assert empty.any()
    # experts that choose: as wide as the busiest token, and no wider
    assert trace.spec.top_k == (~empty).sum(-1).max()
    # as a foreign file would bring them
    np.savez(corpus / "foreign.npz", experts=trace.routes, request=trace.request, position=trace.position)
    done = CliRunner().invoke(
        app, ["import", str(corpus / "foreign.npz"), "-o", str(corpus / "imported.parquet"), "--format-option",
              "experts=8", "--format-option", "dims=olmoe-1b-7b"]
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert np.array_equal(Trace.read(corpus / "imported.parquet").routes, trace.routes)
    cluster = Cluster.read("h100-1x8")
    plan = solve(trace, cluster, slots_per_rank=1, solver="contiguous", seed=0)
    report = simulate(trace, cluster, plan, tokens_per_rank=64)
    assert report.tokens.sum() == (~empty).sum()
    assert report.step_tokens.sum() == trace.tokens
    moved = solve(trace, cluster, slots_per_rank=2, solver="moesim", seed=0)
    assert simulate(trace, cluster, moved, tokens_per_rank=64).tokens.sum() == (~empty).sum()


def test_the_bundled_recipe_serves_any_router(corpus):
    config = replace(MODEL, router="expert-choice", context=64)
    train(corpus, corpus / "run", config=config, recipe=replace(RECIPE, tokens=512), quiet=True)
    from moesim.moe.traces import capture_bundled

    trace = capture_bundled(
        corpus, corpus / "serving.parquet", model=corpus / "run", count=16, prompt_tokens=(4, 12), new_tokens=(2, 10),
        slots=4, step_tokens=32, chunk=16,
    )  # fmt: skip
    assert trace == Trace.read(corpus / "serving.parquet")
    assert (trace.phase == PREFILL).any()
    assert trace.origin["router"] == "expert-choice"
    assert trace.spec.top_k == (trace.routes >= 0).sum(-1).max()


def test_torchrun_trains_on_several_processes(corpus):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "moesim", "train",
        "--corpus", str(corpus), "-o", str(corpus / "run"), "--config", str(settings(corpus)), "--threads", "1",
        "--capture", str(corpus / "training.parquet"), "--capture-every", "3",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=HERE,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wrote") == 1
    assert [line["step"] for line in lines(corpus / "run/metrics.jsonl")] == list(range(1, 7))
    assert np.unique(Trace.read(corpus / "training.parquet").source).tolist() == [0, 1]


def test_the_settings_of_the_page_are_settings(root, tmp_path):
    page = (root / "docs/routing.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (tmp_path / "settings.toml").write_text(example)
    model, recipe = read_settings(tmp_path / "settings.toml")
    assert (model.router, recipe.balance_rate) == ("deepseek-v3", 1e-3)
    # the page has a row for every router, in both of its tables
    for name in ROUTERS.names():
        assert f"| `{name}` |" in page
        assert re.search(rf"^\| {name}[ ,][^|]*\|( [\d.]+ )", page, re.M), name
