from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from moesim.moe.corpus import DOMAINS, Document
from moesim.moe.corpus.pack import write_corpus
from moesim.moe.evaluate import bits_per_byte, evaluate, loss_of, unigram
from moesim.moe.tokenizer import train_tokenizer
from moesim.moe.weights import save_model


def test_loss_asks_for_every_token_but_the_first_exactly_once(model, monkeypatch):
    stream = np.random.default_rng(0).integers(0, 300, 101)
    with torch.inference_mode():
        total = 0.0
        for start in range(0, 100, 32):
            window = torch.tensor(stream[start : start + 33])
            logits = torch.log_softmax(model(window[None, :-1]).logits[0], dim=-1)
            total -= logits.gather(1, window[1:, None]).sum().item()
    assert loss_of(model, stream) == pytest.approx(total / 100, rel=1e-5)


def test_a_unigram_model_costs_the_entropy_of_what_it_counted():
    stream = np.repeat([1, 2, 3], [5000, 2500, 2500])
    assert unigram([stream], 4)[stream].mean() == pytest.approx(1.5 * math.log(2), rel=1e-3)


def test_bits_per_byte_counts_bytes_not_characters():
    document = Document("russian", "validation", 0, "мир")
    assert bits_per_byte(math.log(2), np.arange(12), [document]) == pytest.approx(2.0)


def test_rows_compare_the_model_with_its_baselines(model, tmp_path):
    documents = [
        Document(domain, part, i, f"{domain} {part} " * 40)
        for part in ("train", "validation")
        for i, domain in enumerate(DOMAINS)
    ]
    write_corpus(documents, tmp_path / "corpus.parquet")
    save_model(model, train_tokenizer([d.text for d in documents], 300), tmp_path / "model")
    rows = evaluate(tmp_path, tmp_path / "model", dense=tmp_path / "model", most_documents=1)
    assert [row["domain"] for row in rows] == list(DOMAINS)
    for row in rows:
        assert row["model"] == row["dense"]
        # an untrained model knows nothing; the unigram model of the domain knows its words
        assert row["unigram_domain"] < row["unigram"] < row["model"]
