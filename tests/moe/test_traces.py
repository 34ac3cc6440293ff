from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from moesim.base.errors import InputError, UnknownName
from moesim.capture import capture
from moesim.moe.corpus import DOMAINS, Document
from moesim.moe.corpus.pack import write_corpus
from moesim.moe.spec import spec_of
from moesim.moe.tokenizer import END_ID, train_tokenizer
from moesim.moe.traces import capture_bundled, make_requests, record_traffic
from moesim.moe.weights import Bundle, load_model, save_model
from moesim.trace import DECODE, PREFILL, Trace

LENGTHS = {"prompt_tokens": (4, 12), "new_tokens": (2, 10)}


@pytest.fixture
def documents() -> list[Document]:
    rng = np.random.default_rng(0)
    words = [" ".join(map(str, rng.integers(0, 10_000, 60))) for _ in range(2 * len(DOMAINS))]
    return [Document(DOMAINS[i % len(DOMAINS)], "eval", i, text) for i, text in enumerate(words)]


@pytest.fixture
def bundle(model, documents) -> Bundle:
    tokenizer = train_tokenizer([document.text for document in documents], 300)
    return Bundle(model, tokenizer, folder=None, digest="tiny")


@pytest.fixture
def traced(bundle, documents):
    requests = make_requests(documents, bundle, count=24, seed=2, **LENGTHS)
    pieces = list(record_traffic(bundle, requests, origin={}, keep_weights=True, slots=5, step_tokens=16, chunk=6))
    assert len(pieces) == 1
    return requests, pieces[0]


def test_capture_equals_what_the_routers_decide_on_the_whole_sequence(bundle, traced):
    _, trace = traced
    for request in range(4):
        rows = np.flatnonzero(trace.request == request)
        assert trace.position[rows].tolist() == list(range(len(rows)))
    # the same text in one forward pass, without batcher and cache; near ties may fall either way
    requests, _ = traced
    same, total = 0, 0
    for number, request in enumerate(requests):
        rows = (trace.request == number) & (trace.phase == PREFILL)
        with torch.inference_mode(), capture(bundle.model) as recorder:
            bundle.model(torch.tensor([request.prompt]))
            routes, _ = recorder.take()
        same += int((routes == trace.routes[rows]).all(-1).sum())
        total += routes.shape[0] * routes.shape[1]
    assert same >= 0.999 * total


def test_every_prompt_token_is_recorded_once_as_prefill(traced):
    requests, trace = traced
    prefill = Counter(trace.request[trace.phase == PREFILL].tolist())
    assert prefill == {i: len(request.prompt) for i, request in enumerate(requests)}
    decoded = Counter(trace.request[trace.phase == DECODE].tolist())
    assert all(decoded[i] <= request.new_tokens for i, request in enumerate(requests))
    assert decoded.total() > 0


def test_steps_mix_requests_and_phases(traced):
    _, trace = traced
    assert trace.has_steps
    mixed = [set(trace.phase[trace.step == step].tolist()) for step in trace.step_ids]
    assert {PREFILL, DECODE} in mixed
    assert max(Counter(trace.step.tolist()).values()) <= 16


def test_gate_weights_sum_to_the_routed_scale(traced):
    _, trace = traced
    np.testing.assert_allclose(trace.weights.astype(float).sum(-1), 2.5, atol=0.01)


def test_requests_have_every_domain_equally_often_and_bounded_lengths(bundle, documents):
    requests = make_requests(documents, bundle, count=24, seed=2, **LENGTHS)
    assert Counter(request.domain for request in requests) == dict.fromkeys(range(len(DOMAINS)), 3)
    assert all(4 <= len(request.prompt) <= 12 and 2 <= request.new_tokens <= 10 for request in requests)
    assert all(request.prompt[0] == END_ID for request in requests)


def test_prompts_do_not_overlap(bundle):
    words = [f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"]
    document = Document("math", "eval", 0, " ".join(words))
    requests = make_requests([document], bundle, count=20, **LENGTHS)
    text = [token for request in requests for token in request.prompt[1:]]
    whole = bundle.tokenizer.encode(document.text).ids
    assert not Counter(text) - Counter(whole)


def test_too_few_documents_are_named(bundle, documents):
    with pytest.raises(InputError, match="domain math: its documents hold fewer than 1000 prompts"):
        make_requests(documents, bundle, count=8000, **LENGTHS)


def test_capture_bundled_writes_the_same_trace_each_time(bundle, documents, tmp_path):
    long = [Document(d.domain, d.part, d.unit, d.text * 4) for d in documents]
    write_corpus(long, tmp_path / "corpus.parquet")
    save_model(bundle.model, bundle.tokenizer, tmp_path / "model")
    # prompts of the defaults are longer than the tiny model's context
    with pytest.raises(InputError, match="context"):
        capture_bundled(tmp_path, tmp_path / "a.parquet", count=8, model=tmp_path / "model")
    made = [
        capture_bundled(
            tmp_path, tmp_path / name, count=16, model=tmp_path / "model", slots=4, step_tokens=32, chunk=16, **LENGTHS
        )
        for name in ("a.parquet", "b.parquet")
    ]
    assert made[0] == made[1] == Trace.read(tmp_path / "a.parquet")
    assert made[0].spec == spec_of(bundle.model.config)
    assert made[0].domains == DOMAINS
    assert made[0].origin["weights_digest"] == load_model(tmp_path / "model").digest
    assert made[0].weights is None


def test_an_unknown_part_is_refused(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'eval'"):
        capture_bundled(tmp_path, tmp_path / "x.parquet", part="evl")


def test_a_dense_model_has_no_trace(config):
    with pytest.raises(InputError, match="dense model has no experts"):
        spec_of(config.dense())
