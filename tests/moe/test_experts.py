from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.moe.config import MoeConfig
from moesim.moe.experts import Experts

SMALL = MoeConfig(hidden=16, heads=2, experts=8, top_k=3, intermediate=8)


def reference(layer: Experts, x: np.ndarray, experts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One token and one expert at a time, in float64."""

    def swiglu(row, gate_up, down):
        gate, up = np.split(row @ gate_up, 2)
        return (gate / (1 + np.exp(-gate)) * up) @ down

    gate_up, down = (p.detach().double().numpy() for p in (layer.gate_up, layer.down))
    shared = [p.detach().double().numpy() for p in (layer.shared.gate_up, layer.shared.down)]
    out = np.array([swiglu(row, *shared) for row in x])
    for token, row in enumerate(x):
        for expert, weight in zip(experts[token], weights[token], strict=True):
            out[token] += weight * swiglu(row, gate_up[expert], down[expert])
    return out


def make(seed: int) -> Experts:
    layer = Experts(SMALL)
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return layer


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 40), top_k=st.integers(1, 8), few=st.booleans(), seed=st.integers(0, 99))
def test_experts_equal_the_plain_float64_reference(tokens, top_k, few, seed):
    layer, rng = make(seed), np.random.default_rng(seed)
    # `few` leaves experts without tokens
    pool = max(top_k, 4) if few else 8
    experts = np.array([rng.permutation(pool)[:top_k] for _ in range(tokens)])
    weights, x = rng.random((tokens, top_k)), rng.normal(size=(tokens, 16))
    expected = reference(layer, x, experts, weights)
    got = layer(torch.tensor(x).float(), torch.tensor(experts), torch.tensor(weights).float())
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=2e-4, atol=2e-5)


def test_gradients_equal_numerical_ones():
    layer = make(0).double()
    x = torch.randn(4, 16, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(3))
    weights = torch.rand(4, 2, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(4))
    experts = torch.tensor([[0, 1], [1, 7], [2, 0], [7, 1]])
    assert torch.autograd.gradcheck(lambda a, b: layer(a, experts, b), (x, weights))


def test_an_expert_without_tokens_gets_no_gradient():
    layer = make(0)
    layer(torch.ones(3, 16), torch.tensor([[0], [0], [2]]), torch.ones(3, 1)).sum().backward()
    used = layer.down.grad.abs().sum((1, 2)) > 0
    assert used.tolist() == [True, False, True, False, False, False, False, False]


@pytest.mark.parametrize("tokens", [1, 5])
def test_the_order_of_picks_does_not_matter(tokens):
    layer = make(1)
    x = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(5))
    experts = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(i))[:3] for i in range(tokens)])
    weights = torch.rand(tokens, 3, generator=torch.Generator().manual_seed(6))
    assert torch.allclose(layer(x, experts, weights), layer(x, experts.flip(1), weights.flip(1)), atol=1e-6)
