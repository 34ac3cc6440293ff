"""The study of routers: what it measures is what the routing is, and its page says what it measured."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from moesim.moe import study_routers
from moesim.moe.corpus import DOMAINS, Document
from moesim.moe.corpus.pack import write_corpus
from moesim.moe.model import MoeModel
from moesim.moe.study_page import figure, table
from moesim.moe.study_routers import MODEL, RECIPE, VARIANTS, decoded_loss, measure, study, whole_loss

TINY = replace(MODEL, vocabulary=300, layers=2, hidden=16, heads=2, intermediate=8, context=32)


@pytest.fixture
def windows():
    return np.random.default_rng(0).integers(0, 300, (64, 33))


@pytest.mark.parametrize("router", ["topk-softmax", "hash", "sequence"])
def test_without_competition_decoding_costs_what_whole_sequences_cost(windows, router):
    model = MoeModel(replace(TINY, router=router)).initialise(0).eval()
    assert decoded_loss(model, windows) == pytest.approx(whole_loss(model, windows, 32)[0], abs=1e-4)


def test_measures_are_those_of_the_routing(windows):
    model = MoeModel(replace(TINY, router="switch", capacity_factor=0.5)).initialise(0).eval()
    loss, trace = whole_loss(model, windows, 32)
    found = measure(model, windows, "h100-4x8-rail")
    assert found["loss"] == loss
    assert found["dropped"] == pytest.approx((trace.routes < 0).mean())
    assert found["picks"] == pytest.approx(1 - found["dropped"])
    assert found["dropped"] > 0.5
    # 32 experts in order on 32 ranks: the busiest rank of a step is the one with the busiest expert
    assert found["imbalance"] == pytest.approx((trace.counts.max(-1) / trace.counts.mean(-1)).mean())
    loads = trace.loads / trace.loads.mean(1, keepdims=True)
    assert found["sorted_loads"][0] == pytest.approx(loads.max(1).mean(), abs=1e-3)
    assert sum(found["sorted_loads"]) == pytest.approx(32, abs=0.1)


def test_a_step_is_a_sequence_on_each_rank(windows):
    model = MoeModel(TINY).initialise(0).eval()
    _, trace = whole_loss(model, windows, 32)
    assert trace.steps == 2
    for step in (0, 1):
        assert np.bincount(trace.source[trace.step == step]).tolist() == [32] * 32


def test_a_study_is_resumed_and_its_page_has_every_row(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    documents = [
        Document(domain, part, i, " ".join(map(str, rng.integers(0, 999, 400))))
        for part in ("train", "validation")
        for i, domain in enumerate(DOMAINS)
    ]
    write_corpus(documents, tmp_path / "corpus.parquet")
    monkeypatch.setattr(study_routers, "MODEL", TINY)
    monkeypatch.setattr(study_routers, "RECIPE", replace(RECIPE, warmup=2))
    options = {"tokens": 512, "windows": 8, "seeds": (0, 1)}
    study(tmp_path, tmp_path / "out", variants=["hash"], **options)
    before = json.loads((tmp_path / "out/routers.json").read_text())
    rows = study(tmp_path, tmp_path / "out", variants=["hash", "expert-choice"], **options)
    assert rows[:2] == before
    assert [(row["name"], row["seed"]) for row in rows[2:]] == [("expert-choice", 0), ("expert-choice", 1)]
    page = (tmp_path / "out/routers.md").read_text()
    assert page == table(rows)
    assert page.count("\n") == 4
    assert f"| hash | {np.mean([row['loss'] for row in before]):.3f} (" in page
    drawing = ElementTree.fromstring((tmp_path / "out/routers.svg").read_text())
    assert drawing.tag.endswith("svg")
    assert figure(rows).count("<path") == 4


def test_every_variant_is_a_model():
    for model, recipe in VARIANTS.values():
        MoeModel(replace(MODEL, **model))
        replace(RECIPE, **recipe)
