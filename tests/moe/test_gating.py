"""The router's choice: one kernel and PyTorch, both against what the words say."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install 'moesim[gpu]'")

from moesim.base.errors import InputError
from moesim.moe import gating
from moesim.moe.config import MoeConfig
from moesim.moe.gating import pick_torch
from moesim.moe.kernels.topk import pick
from moesim.moe.routers import make_router, sigmoid, softmax

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WAYS = {
    "softmax": {"normalise": False},
    "softmax, normalised": {},
    "sigmoid": {"sigmoid": True, "scale": 2.5},
    "sigmoid, biased": {"sigmoid": True, "bias": torch.linspace(-0.3, 0.3, 24)},
    "group-limited": {"sigmoid": True, "bias": torch.linspace(0.2, -0.2, 24), "groups": 6, "limit": 2, "scale": 2.5},
    "groups of two": {"groups": 12, "limit": 2},
}


def draw(tokens=10, experts=24):
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def on_device(options):
    return {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("top_k", [1, 3, 4])
def test_the_kernel_chooses_as_float64_does(way, top_k):
    logits, options = draw(), on_device(WAYS[way])
    experts, weights = pick(logits, top_k, **options)
    expected, wide = pick_torch(logits.double(), top_k, **options)
    assert torch.equal(experts, expected)
    assert torch.allclose(weights.double(), wide, atol=1e-6)
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_is_that_of_float64(way):
    options = on_device(WAYS[way])
    slope = torch.rand(10, 4, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    one, other = draw().requires_grad_(), draw().double().requires_grad_()
    (pick(one, 4, **options)[1] * slope).sum().backward()
    (pick_torch(other, 4, **options)[1] * slope).sum().backward()
    assert torch.allclose(one.grad.double(), other.grad, atol=1e-6)


@pytest.mark.parametrize("function", [pick, pick_torch], ids=["kernel", "torch"])
def test_ties_go_to_the_smaller_expert(function):
    experts, _ = function(torch.zeros(2, 10, device=DEVICE), 4)
    assert experts.tolist() == [[0, 1, 2, 3]] * 2
    experts, _ = function(torch.zeros(1, 12, device=DEVICE), 4, groups=4, limit=2)
    assert experts.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("function", [pick, pick_torch], ids=["kernel", "torch"])
def test_a_token_stays_in_its_groups(function):
    experts, _ = function(draw(), 8, sigmoid=True, groups=6, limit=2)
    assert all(len(set((row // 4).tolist())) <= 2 for row in experts)


@pytest.mark.parametrize("experts", [5, 24, 33])
def test_numbers_of_experts_that_are_no_power_of_two(experts):
    logits = draw(7, experts)
    assert torch.equal(pick(logits, 3)[0], pick_torch(logits, 3)[0])


def test_no_token_picks_nothing():
    experts, weights = pick(draw()[:0], 3)
    assert experts.shape == weights.shape == (0, 3)


def test_groups_that_cannot_hold_the_picks_are_refused():
    with pytest.raises(InputError, match="1 of 6 groups of 24 experts cannot give 5 picks"):
        gating.pick(draw(), 5, groups=6, limit=1)


@pytest.mark.parametrize("name", ["sigmoid-bias", "deepseek-v3", "softmax-topk", "topk-softmax", "switch"])
def test_routers_decide_the_same_with_the_kernel(name, monkeypatch):
    config = MoeConfig(hidden=16, heads=2, experts=8, top_k=2, groups=4, group_limit=2, router=name)
    router = make_router(config, 0).to(DEVICE).eval()
    hidden = torch.randn(3, 20, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    monkeypatch.setattr(sigmoid, "usable", lambda tensor: False)
    monkeypatch.setattr(softmax, "usable", lambda tensor: False)
    plain = router(hidden)
    for module in (gating, sigmoid, softmax):
        monkeypatch.setattr(module, "usable", lambda tensor: True)
    fused = router(hidden)
    assert torch.equal(plain.experts, fused.experts)
    assert torch.allclose(plain.weights, fused.weights, atol=1e-6)
