from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from moesim.base.errors import InputError
from moesim.moe.corpus import DOMAINS, Document
from moesim.moe.corpus.pack import write_corpus
from moesim.moe.data import Batches
from moesim.moe.recipe import Recipe
from moesim.moe.run import Run
from moesim.moe.train import train
from moesim.moe.weights import load_model

RECIPE = Recipe(tokens=8 * 32 * 6, rows=8, warmup=2, save_every=2, seed=5)


@pytest.fixture
def batches() -> Batches:
    rng = np.random.default_rng(0)
    streams = {domain: rng.integers(0, 300, 200) for domain in DOMAINS}
    return Batches(streams, rows=8, length=32, seed=5)


def test_a_resumed_run_equals_one_that_never_stopped(config, batches, tmp_path):
    whole, first = (Run(config, RECIPE, batches) for _ in range(2))
    expected = [whole.advance()["loss"] for _ in range(6)]
    got = [first.advance()["loss"] for _ in range(3)]
    first.save(tmp_path / "checkpoint.pt")
    second = Run(config, RECIPE, batches)
    second.resume(tmp_path / "checkpoint.pt")
    got += [second.advance()["loss"] for _ in range(3)]
    assert got == expected
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_a_checkpoint_of_another_recipe_is_refused(config, batches, tmp_path):
    Run(config, RECIPE, batches).save(tmp_path / "checkpoint.pt")
    other = Run(config, replace(RECIPE, learning_rate=1.0), batches)
    with pytest.raises(InputError, match=r"another recipe \(learning_rate\)"):
        other.resume(tmp_path / "checkpoint.pt")


def test_every_domain_has_an_equal_share_of_every_batch():
    streams = {domain: np.full(100, code) for code, domain in enumerate(DOMAINS)}
    inputs, targets = Batches(streams, rows=16, length=10, seed=0)[3]
    assert inputs.shape == targets.shape == (16, 10)
    assert np.bincount(inputs[:, 0]).tolist() == [2] * 8


def test_each_window_comes_once_before_any_comes_again():
    batches = Batches({"only": np.arange(101)}, rows=1, length=10, seed=0)
    starts = [int(batches[step][0][0, 0]) for step in range(20)]
    assert sorted(starts[:10]) == sorted(starts[10:]) == list(range(0, 100, 10))
    assert starts[:10] != starts[10:]


def test_targets_are_the_inputs_one_token_later():
    inputs, targets = Batches({"only": np.arange(101)}, rows=1, length=10, seed=0)[0]
    assert (targets == inputs + 1).all()


def test_training_learns_and_leaves_a_model_that_loads(config, tmp_path):
    text = "the cat sat on the mat and the dog sat on the log. " * 40
    documents = [Document(domain, "train", i, f"{domain} {text}") for i, domain in enumerate(DOMAINS)]
    write_corpus(documents, tmp_path / "corpus.parquet")
    recipe = replace(RECIPE, tokens=8 * 32 * 30, learning_rate=1e-2)
    model = train(tmp_path, tmp_path / "run", config=config, recipe=recipe, quiet=True)
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 31))
    assert records[-1]["loss"] < records[0]["loss"] - 1
    assert all(len(record["max_over_mean"]) == 2 for record in records)
    loaded = load_model(tmp_path / "run").model
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, loaded.state_dict()[name], rtol=1e-2, atol=1e-3), name
