from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moesim.base.errors import InputError, UnknownName
from moesim.moe.config import MoeConfig
from moesim.moe.routers import make_router


@pytest.fixture
def router(config: MoeConfig):
    return make_router(config, layer=0).eval()


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(2, 25, 16, generator=torch.Generator().manual_seed(0))


def test_a_token_picks_top_k_different_experts(router, hidden):
    experts, weights, _ = router(hidden)
    assert experts.shape == weights.shape == (2, 25, 3)
    assert all(len(set(row)) == 3 for row in experts.flatten(0, 1).tolist())


def test_the_picks_are_the_largest_gates_plus_bias(router, hidden):
    router.bias.copy_(torch.linspace(-0.5, 0.5, 8))
    experts = router(hidden).experts
    score = torch.sigmoid(hidden.double() @ router.gate.weight.double().T) + router.bias.double()
    worst_picked = score.gather(-1, experts).min(dim=-1).values
    best_left = score.scatter(-1, experts, -torch.inf).max(dim=-1).values
    assert (worst_picked >= best_left).all()


def test_weights_come_from_the_gates_alone_and_sum_to_the_scale(router, hidden):
    router.bias.copy_(torch.linspace(-0.5, 0.5, 8))
    experts, weights, _ = router(hidden)
    gates = torch.sigmoid(hidden @ router.gate.weight.T).gather(-1, experts)
    assert torch.allclose(weights.sum(-1), torch.tensor(2.5), atol=1e-5)
    assert torch.allclose(weights / weights[..., :1], gates / gates[..., :1], atol=1e-5)


def test_the_bias_moves_against_the_load_only_outside_of_the_band(router):
    # what is seen in this step moves the running load by a tenth: not over the edges of the band
    router.load.copy_(torch.tensor([0.0, 0.1, 1.0, 1.0, 1.0, 1.0, 1.9, 3.0]) / 8)
    router.seen[:8] = 1.0
    router.settle(0.01, low=0.5, high=2.0)
    assert router.bias.tolist() == pytest.approx([0.01, 0.01, 0, 0, 0, 0, 0, -0.01])


def test_nudging_revives_a_starved_expert(router, hidden):
    router.train()
    with torch.no_grad():
        router.gate.weight[0] = -hidden.mean((0, 1)) * 20 - 1
        router.bias[0] = -1.0
    for _ in range(300):
        router(hidden)
        router.settle(0.02, low=0.5, high=2.0)
    assert router.load[0] * 8 > 0.4


def test_the_balance_loss_is_one_when_balanced_and_more_when_not(config, router, hidden):
    router.train()
    with torch.no_grad():
        router.gate.weight.zero_()
    tied = router(hidden).losses["balance"]
    assert tied.item() == pytest.approx(1.0, abs=1e-4)
    with torch.no_grad():
        router.gate.weight[:3] = 1.0
        router.gate.weight[3:] = -1.0
    assert router(hidden.abs()).losses["balance"] > 1.5


def test_sequences_must_be_balanced_one_by_one(router):
    router.train()
    with torch.no_grad():
        router.gate.weight.zero_()
        router.gate.weight[:4, 0], router.gate.weight[4:, 0] = 5.0, -5.0
    left, right = torch.zeros(1, 10, 16), torch.zeros(1, 10, 16)
    left[..., 0], right[..., 0] = 1.0, -1.0
    apart = router(torch.cat([left, right])).losses["balance"]
    mixed = router(torch.cat([left, right], dim=1)).losses["balance"]
    assert apart > 1.8 > 1.2 > mixed


def test_balance_loss_has_a_gradient_that_lowers_it(router, hidden):
    router.train()
    optimizer = torch.optim.SGD([router.gate.weight], lr=2.0)
    first = router(hidden).losses["balance"]
    for _ in range(200):
        optimizer.zero_grad()
        router(hidden).losses["balance"].backward()
        optimizer.step()
    assert router(hidden).losses["balance"] < first


def test_loss_free_balancing_moves_every_bias_against_its_error(config):
    router = make_router(replace(config, router="deepseek-v3", groups=2, group_limit=2), layer=0).train()
    router.seen[:8] = torch.tensor([0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 4.0])
    router.settle(0.01, low=0.35, high=2.5)
    assert router.bias.tolist() == pytest.approx([0.01, 0.01, 0, 0, 0, 0, -0.01, -0.01])


def test_loss_free_balancing_evens_a_skewed_gate(config):
    router = make_router(replace(config, router="deepseek-v3", groups=4, group_limit=2), layer=0).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        router.gate.weight.normal_(generator=generator)
    hidden = torch.randn(4, 200, 16, generator=generator) + 1.0
    router(hidden)
    before = (router.seen[:8].max() / router.seen[:8].mean()).item()
    for _ in range(400):
        router(hidden)
        router.settle(0.01, low=1.0, high=1.0)
    router(hidden)
    after = (router.seen[:8].max() / router.seen[:8].mean()).item()
    assert before > 1.5
    assert after < 1.15


def test_a_token_picks_from_its_best_groups_only(config, hidden):
    router = make_router(replace(config, router="deepseek-v3", groups=4, group_limit=2), layer=0).eval()
    experts = router(hidden).experts
    assert all(len(set(row)) <= 2 for row in (experts.flatten(0, 1) // 2).tolist())
    score = torch.sigmoid(hidden @ router.gate.weight.T).unflatten(-1, (4, 2)).sum(-1)
    best = score.topk(2, dim=-1).indices
    assert ((experts // 2).unsqueeze(-1) == best.unsqueeze(-2)).any(-1).all()


def test_groups_that_cannot_hold_the_picks_are_refused(config):
    with pytest.raises(InputError, match="1 group of 2 experts cannot give top_k 3"):
        make_router(replace(config, router="deepseek-v3", groups=4, group_limit=1), layer=0)
    with pytest.raises(InputError, match="3 groups do not divide 8 experts"):
        make_router(replace(config, router="deepseek-v3", groups=3), layer=0)


def test_an_unknown_router_is_named_with_the_nearest_known(config):
    with pytest.raises(UnknownName, match="did you mean 'sigmoid-bias'"):
        make_router(replace(config, router="sigmoid-bais"), layer=0)
