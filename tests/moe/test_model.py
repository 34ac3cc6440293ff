from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import InputError
from moesim.capture import Request
from moesim.moe.cache import Cache, Past
from moesim.moe.config import MoeConfig
from moesim.moe.model import MoeModel
from moesim.moe.serve import serve
from moesim.moe.tokenizer import END_ID

TINY = MoeConfig(vocabulary=300, layers=2, hidden=16, heads=2, experts=8, top_k=3, intermediate=8, context=32)


@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, 19)), seed=st.integers(0, 9))
def test_going_on_from_a_cache_equals_one_pass_over_the_whole_sequence(cuts, seed):
    model = MoeModel(TINY).initialise(seed).eval()
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(seed))
    whole = model(tokens).logits
    cache, slots = Cache(TINY, slots=3), torch.tensor([2, 0])
    edges = [0, *sorted(cuts), 20]
    with torch.inference_mode():
        pieces = [
            model(tokens[:, a:b], Past(cache, slots, torch.tensor([a, a]), b - a)).logits for a, b in pairwise(edges)
        ]
    assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-4)


def test_sequences_of_different_lengths_decode_in_one_batch(model):
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    cache = Cache(model.config, slots=2)
    with torch.inference_mode():
        for slot, length in enumerate((12, 5)):
            model(tokens[slot : slot + 1, :length], Past(cache, torch.tensor([slot]), torch.tensor([0]), length))
        step = torch.stack([tokens[0, 12:13], tokens[1, 5:6]])
        together = model(step, Past(cache, torch.tensor([0, 1]), torch.tensor([12, 5]), 1)).logits
        assert torch.allclose(together[0, 0], model(tokens[:1, :13]).logits[0, -1], atol=1e-4)
        assert torch.allclose(together[1, 0], model(tokens[1:, :6]).logits[0, -1], atol=1e-4)


def test_a_token_sees_nothing_that_comes_after_it(model):
    tokens = torch.randint(0, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 10:] = 7
    assert torch.allclose(model(tokens).logits[0, :10], model(changed).logits[0, :10], atol=1e-5)


def test_the_dense_model_has_the_active_size_of_the_moe_model():
    config = MoeConfig()
    moe, dense = (sum(p.numel() for p in MoeModel(c).parameters()) for c in (config, config.dense()))
    gates = config.layers * config.hidden * config.experts
    idle = config.layers * (config.experts - config.top_k) * 3 * config.hidden * config.intermediate
    assert moe - idle - gates == dense


def test_greedy_serving_equals_taking_the_likeliest_token_again_and_again(model):
    prompt = [END_ID, 5, 9, 200]
    expected = list(prompt)
    for _ in range(8):
        expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
        if expected[-1] == END_ID:
            break
    works = [work for step in serve(model, [Request(tuple(prompt), 8)], slots=1, temperature=0) for work in step]
    fed = [token for work in works for token in work.tokens]
    assert fed == [token for i, token in enumerate(expected) if token != END_ID or i == 0]


def test_samples_do_not_depend_on_what_else_is_in_the_batch(model):
    requests = [Request((END_ID, 3 * i + 1, 7, 9 + i), 12) for i in range(6)]

    def texts(**serving):
        fed: dict[int, list[int]] = {}
        for step in serve(model, requests, temperature=0.8, seed=3, **serving):
            for work in step:
                fed.setdefault(work.request, []).extend(work.tokens)
        return fed

    assert texts(slots=1, step_tokens=64, chunk=64) == texts(slots=4, step_tokens=8, chunk=2)


def test_a_request_longer_than_the_context_is_refused(model):
    with pytest.raises(InputError, match="request 0: 40 tokens, but the model's context holds 32"):
        list(serve(model, [Request((1,) * 30, 10)]))


def test_hidden_must_divide_into_heads():
    with pytest.raises(InputError, match="hidden 16"):
        MoeConfig(hidden=16, heads=3)
