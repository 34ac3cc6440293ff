"""Every router passes the judge, and each has the property that defines it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import InputError
from moesim.capture import Request, capture
from moesim.moe.cache import Cache, Past
from moesim.moe.config import MoeConfig
from moesim.moe.model import MoeModel
from moesim.moe.parallel import ALONE
from moesim.moe.routers import ROUTERS, make_router, picks_of
from moesim.moe.routers.base import Context
from moesim.moe.routers.capacity import find_room, room_for
from moesim.moe.routers.losses import balance, variation, z_loss
from moesim.moe.routers.noisy import chance_of_being_picked
from moesim.moe.routers.sequence import PREFIX
from moesim.moe.serve import serve
from moesim.testing import Verdict, check_router

SMALL = MoeConfig(
    vocabulary=300, layers=2, hidden=16, heads=2, experts=8, top_k=2, intermediate=8, context=64, groups=4,
    routed_scale=1.0,
)  # fmt: skip


def build(name: str, seed: int = 0, **changes):
    router = make_router(replace(SMALL, router=name, **changes), layer=0).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in router.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    return router


def states(rows: int = 2, length: int = 30, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, length, 16, generator=torch.Generator().manual_seed(seed))


def logits(router, hidden: torch.Tensor) -> torch.Tensor:
    return hidden @ router.gate.weight.T


@pytest.mark.parametrize("name", ROUTERS.names())
def test_every_router_passes_the_judge(name: str):
    router = ROUTERS.get(name)
    config = MoeConfig(
        vocabulary=50, hidden=12, heads=2, experts=8, top_k=2, groups=4, group_limit=2, context=48, router=name
    )
    check_router(router, config=config, causal=name != "expert-choice", alone=name not in {"switch", "expert-choice"})


def test_the_judge_finds_that_expert_choice_looks_ahead():
    with pytest.raises(Verdict, match="routed by later ones"):
        check_router(ROUTERS.get("expert-choice"), alone=False)
    with pytest.raises(Verdict, match="what else is in the batch"):
        check_router(ROUTERS.get("expert-choice"))


@pytest.mark.parametrize("name", ROUTERS.names())
def test_a_model_with_it_runs_learns_and_is_recorded(name: str):
    config = replace(SMALL, router=name)
    model = MoeModel(config).initialise(0).train()
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    with capture(model) as recorder:
        logits, losses = model(tokens, draw=(0, 0))
        routes, weights = recorder.take()
    assert routes.shape == weights.shape == (40, 2, picks_of(config))
    (logits.square().mean() + sum(losses.values())).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    gates = [p.grad.abs().sum() for key, p in model.named_parameters() if "router" in key]
    assert all(grad > 0 for grad in gates)
    assert bool(gates) == (name != "hash")


def test_softmax_before_keeps_probabilities_and_after_renormalises_them():
    hidden = states()
    before, after = build("softmax-topk"), build("topk-softmax")
    kept, renormalised = before(hidden), after(hidden)
    probabilities = torch.softmax(logits(before, hidden), -1)
    assert torch.allclose(kept.weights, probabilities.topk(2).values, atol=1e-6)
    assert (kept.weights.sum(-1) < 1).all()
    assert torch.equal(kept.experts, renormalised.experts)
    # the softmax over the picked logits alone
    picked = torch.softmax(logits(after, hidden).topk(2).values, -1)
    assert torch.allclose(renormalised.weights, picked, atol=1e-6)


def test_dense_gating_uses_every_expert_with_its_probability():
    hidden, router = states(), build("dense")
    experts, weights, _ = router(hidden)
    assert (experts.sort(-1).values == torch.arange(8)).all()
    assert torch.allclose(weights, torch.softmax(logits(router, hidden), -1).gather(-1, experts), atol=1e-6)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 30), atol=1e-5)


def test_dense_gating_equals_the_mixture_of_1991_in_the_model():
    from moesim.moe.experts import Experts, swiglu

    config = replace(SMALL, router="dense", shared_experts=0)
    router, layer = build("dense"), Experts(config)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) / 4
    hidden = states(1, 10)
    routing = router(hidden)
    got = layer(hidden[0], routing.experts[0], routing.weights[0])
    gates = torch.softmax(logits(router, hidden[0]), -1)
    every = torch.stack([swiglu(hidden[0], layer.gate_up[e], layer.down[e]) for e in range(8)], 1)
    assert torch.allclose(got, (gates.unsqueeze(-1) * every).sum(1), atol=1e-5)


def test_switch_keeps_the_first_tokens_that_find_room_and_drops_the_rest():
    hidden, router = states(2, 40), build("switch", capacity_factor=1.0)
    experts, weights, _ = router(hidden)
    wanted = logits(router, hidden).argmax(-1)
    room = 2 * 40 // 8
    taken = dict.fromkeys(range(8), 0)
    for token in range(40):
        for sequence in range(2):
            expert = int(wanted[sequence, token])
            taken[expert] += 1
            assert int(experts[sequence, token, 0]) == (expert if taken[expert] <= room else -1)
    dropped = experts < 0
    assert dropped.any()
    assert (weights[dropped] == 0).all()


def test_switch_picks_one_expert_whatever_top_k_says():
    assert picks_of(replace(SMALL, router="switch", top_k=5)) == 1
    assert build("switch", top_k=5)(states()).experts.shape == (2, 30, 1)


def test_what_switch_drops_passes_through_the_residual_stream():
    config = replace(SMALL, router="switch", capacity_factor=0.01, shared_experts=0, layers=1)
    model = MoeModel(config).initialise(0).eval()
    tokens = torch.randint(0, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    seen = {}
    model.blocks[0].register_forward_hook(lambda _, given, out: seen.update(x=given[0], out=out[0]))
    model(tokens)
    block = model.blocks[0]
    attended = seen["x"] + block.attention(block.attention_norm(seen["x"]), model.cos[:20], model.sin[:20], None)
    routing = block.router(block.norm(attended), Context(tokens))
    dropped = routing.experts[0, :, 0] < 0
    assert 12 <= int(dropped.sum()) < 20
    assert torch.allclose(seen["out"][0, dropped], attended[0, dropped], atol=1e-6)
    assert not torch.allclose(seen["out"][0, ~dropped], attended[0, ~dropped], atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 30), top_k=st.integers(1, 4), rows=st.integers(1, 3), room=st.integers(1, 12),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_room_is_given_in_the_order_of_positions(length, top_k, rows, room, seed):
    generator = torch.Generator().manual_seed(seed)
    experts = torch.rand(rows, length, 5, generator=generator).argsort(-1)[..., :top_k] - 1
    kept = find_room(experts, room, 4)
    taken: dict[int, int] = {}
    for token in range(length):
        for row in range(rows):
            for k in range(top_k):
                expert = int(experts[row, token, k])
                taken[expert] = taken.get(expert, 0) + 1
                assert bool(kept[row, token, k]) == (expert >= 0 and taken[expert] <= room)


def test_capacity_one_point_twenty_five_of_an_even_share():
    assert room_for(64, 8, 1.25) == 10
    assert room_for(1, 8, 1.25) == 1


def test_any_token_choice_router_can_have_a_capacity():
    experts = build("topk-softmax", capacity_factor=0.5)(states(1, 40)).experts
    counts = torch.bincount(experts[experts >= 0], minlength=8)
    assert counts.max() <= room_for(80, 8, 0.5)
    assert (experts < 0).float().mean() >= 0.5


@pytest.mark.parametrize("length", [8, 30])
def test_expert_choice_gives_every_expert_the_same_load(length: int):
    hidden, router = states(2, length), build("expert-choice")
    router.recorder = None
    experts, weights, _ = router(hidden)
    scores = torch.softmax(logits(router, hidden), -1)
    room = room_for(2 * length * 2, 8, 1.0)
    flat = experts.flatten(0, 1)
    assert (torch.bincount(flat[flat >= 0], minlength=8) == room).all()
    for expert in range(8):
        chosen = (flat == expert).any(-1)
        left = scores.flatten(0, 1)[~chosen, expert]
        assert scores.flatten(0, 1)[chosen, expert].min() >= left.max()
    picked = experts >= 0
    expected = scores.gather(-1, experts.clamp(min=0))
    assert torch.allclose(weights[picked], expected[picked], atol=1e-6)


@pytest.mark.parametrize("name", ["switch", "expert-choice"])
def test_sequences_may_compete_apart(name: str):
    router = build(name, compete="sequence", capacity_factor=1.0)
    hidden = states(3, 40)
    together = router(hidden).experts
    for number in range(3):
        alone = router(hidden[number : number + 1]).experts[0]
        width = alone.shape[-1]
        assert torch.equal(together[number, :, :width], alone)
        assert (together[number, :, width:] == -1).all()
        counts = torch.bincount(alone[alone >= 0], minlength=8)
        assert counts.max() == (5 if name == "switch" else 10)
    # the judge finds no other sequence in it
    config = MoeConfig(vocabulary=50, hidden=12, heads=2, experts=8, top_k=2, groups=4, context=48, compete="sequence")
    check_router(ROUTERS.get(name), config=config, causal=name != "expert-choice")


def test_with_expert_choice_tokens_get_many_experts_or_none():
    router = build("expert-choice", seed=3)
    with torch.no_grad():
        # like tokens like experts: who is not among the best of its kind is nobody's choice
        router.gate.weight[1::2] = router.gate.weight[::2]
    picked = (router(states(40, 60)).experts >= 0).sum(-1)
    assert picked.min() == 0
    assert picked.max() >= 4
    assert picked.float().mean().item() == pytest.approx(2.0)


def test_hash_routing_looks_at_nothing_but_the_token_id():
    router = build("hash")
    tokens = torch.randint(0, 300, (2, 30), generator=torch.Generator().manual_seed(0))
    first, other = (router(states(seed=seed), Context(tokens)) for seed in (1, 2))
    assert torch.equal(first.experts, other.experts)
    assert torch.equal(first.weights, torch.full((2, 30, 2), 0.5))
    assert not list(router.parameters())
    by_token = {}
    for token, experts in zip(tokens.flatten().tolist(), first.experts.flatten(0, 1).tolist(), strict=True):
        assert by_token.setdefault(token, experts) == experts


def test_hash_tables_differ_between_layers_and_spread_token_ids_evenly():
    config = replace(SMALL, router="hash", vocabulary=20_000)
    first, second = (make_router(config, layer).table for layer in (0, 1))
    assert not torch.equal(first, second)
    counts = torch.bincount(first.flatten(), minlength=8)
    assert counts.max() < 1.1 * counts.min()


def test_hash_routing_without_token_ids_says_so():
    with pytest.raises(InputError, match="router hash: needs the token ids"):
        build("hash")(states())


def test_a_sequence_keeps_its_experts_after_the_prefix():
    experts = build("sequence")(states(3, 50)).experts
    assert (experts[:, PREFIX - 1 :] == experts[:, PREFIX - 1 : PREFIX]).all()
    assert len({tuple(sorted(row)) for row in experts[:, -1].tolist()}) > 1


def test_later_tokens_do_not_move_a_sequence():
    hidden = states(1, 50)
    changed = hidden.clone()
    changed[:, PREFIX:] = 7.0
    router = build("sequence")
    assert torch.equal(router(hidden).experts, router(changed).experts)


@pytest.mark.parametrize("name", ["sequence", "hash", "hierarchical", "deepseek-v3", "topk-softmax", "noisy-topk"])
def test_going_on_from_a_cache_equals_one_pass(name: str):
    config = replace(SMALL, router=name)
    model = MoeModel(config).initialise(3).eval()
    tokens = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    cache, slots = Cache(config, slots=3), torch.tensor([2, 0])
    with torch.inference_mode(), capture(model) as recorder:
        # somebody else was in these slots before
        model(tokens.flip(0), Past(cache, slots, torch.tensor([0, 0]), 40))
        recorder.take()
        whole = model(tokens).logits
        expected, _ = recorder.take()
        pieces = [
            model(tokens[:, a:b], Past(cache, slots, torch.tensor([a, a]), b - a)).logits
            for a, b in pairwise([0, 7, 8, 30, 40])
        ]
        recorder.take()
    assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-3)
    assert len(expected) == 80


def test_a_hierarchical_token_visits_exactly_its_groups():
    router = build("hierarchical", top_k=4, groups=4, group_limit=2)
    hidden = states()
    experts, weights, _ = router(hidden)
    groups = (experts // 2).sort(-1).values
    assert (groups[..., 0] == groups[..., 1]).all()
    assert (groups[..., 2] == groups[..., 3]).all()
    assert (groups[..., 1] != groups[..., 2]).all()
    outer = hidden @ router.group_gate.weight.T
    best = outer.topk(2, dim=-1).indices.sort(-1).values
    assert torch.equal(groups[..., ::2], best)
    # the weight of a group is what its experts have together
    share = torch.softmax(outer.topk(2, dim=-1).values, -1)
    found = torch.stack(
        [(weights * (experts // 2 == g.unsqueeze(-1))).sum(-1) for g in outer.topk(2).indices.unbind(-1)], -1
    )
    assert torch.allclose(found, share, atol=1e-5)


def test_a_hierarchy_that_cannot_share_its_picks_evenly_is_refused():
    with pytest.raises(InputError, match="top_k 3 must be group_limit 2 times"):
        build("hierarchical", top_k=3)


def test_noise_is_for_training_only_and_depends_on_step_layer_and_row_alone():
    router = build("noisy-topk").train()
    hidden = states(4, 30)
    whole = router(hidden, Context(draw=(0, 1))).experts
    assert torch.equal(whole, router(hidden, Context(draw=(0, 1))).experts)
    assert not torch.equal(whole, router(hidden, Context(draw=(0, 2))).experts)
    # as a process would see it that holds rows 2 and 3 of the batch
    assert torch.equal(whole[2:], router(hidden[2:], Context(draw=(0, 1), rows=(2, 3))).experts)
    router.eval()
    assert torch.equal(router(hidden).experts, logits(router, hidden).topk(2).indices)


def test_the_load_loss_counts_how_often_fresh_noise_would_pick_an_expert():
    generator = torch.Generator().manual_seed(0)
    clean, spread = torch.randn(1, 6, generator=generator), torch.full((1, 6), 0.7)
    noise = torch.randn(1, 6, generator=generator) * spread
    noisy = clean + noise
    got = chance_of_being_picked(clean, spread, noisy, noisy.topk(3).values, top_k=2)[0]
    for expert in range(6):
        others = torch.cat([noisy[0, :expert], noisy[0, expert + 1 :]])
        fresh = clean[0, expert] + 0.7 * torch.randn(200_000, generator=generator)
        assert got[expert].item() == pytest.approx((fresh > others.topk(2).values[-1]).float().mean().item(), abs=0.01)


def test_balance_and_importance_losses_are_least_when_even():
    even = torch.full((1, 16, 8), 1 / 8)
    experts = torch.arange(32).view(1, 16, 2) % 8
    assert balance(even, experts, ALONE).item() == pytest.approx(1.0)
    skewed = torch.softmax(torch.arange(8.0), 0).expand(1, 16, 8)
    assert balance(skewed, torch.full((1, 16, 1), 7), ALONE) > 4
    assert variation(torch.ones(8)).item() == 0
    assert variation(torch.tensor([8.0] + [0.0] * 7)).item() == pytest.approx(7.0)


def test_a_dropped_pick_counts_nowhere_in_the_balance_loss():
    probabilities = torch.softmax(states(2, 10)[..., :8], -1)
    experts = torch.randint(0, 8, (2, 10, 2), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([experts, torch.full((2, 10, 1), -1)], -1)
    assert torch.allclose(balance(probabilities, experts, ALONE), balance(probabilities, padded, ALONE))


def test_z_loss_is_the_mean_square_of_the_log_of_the_partition_function():
    assert z_loss(torch.zeros(3, 8)).item() == pytest.approx(torch.tensor(8.0).log().item() ** 2)


@pytest.mark.parametrize("loss", ["balance", "z", "importance", "load"])
def test_following_an_auxiliary_loss_downhill_lowers_it(loss: str):
    router = build("noisy-topk" if loss in {"importance", "load"} else "topk-softmax", seed=4).train()
    hidden = states(2, 60) + 0.5
    optimizer = torch.optim.SGD(router.parameters(), lr=0.05)
    first = router(hidden, Context(draw=(0, 0))).losses[loss].item()
    for _ in range(60):
        optimizer.zero_grad()
        router(hidden, Context(draw=(0, 0))).losses[loss].backward()
        optimizer.step()
    assert router(hidden, Context(draw=(0, 0))).losses[loss].item() < 0.97 * first


def test_shared_experts_serve_every_token_whatever_is_dropped():
    from moesim.moe.experts import Experts

    layer = Experts(replace(SMALL, shared_experts=2))
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) / 4
    x = states(1, 6)[0]
    nobody = torch.full((6, 2), -1)
    assert torch.allclose(layer(x, nobody, torch.zeros(6, 2)), layer.shared(x))
    some = torch.tensor([[0, -1], [-1, 3], [1, 2], [-1, -1], [4, 0], [7, -1]])
    weights = torch.where(some >= 0, 0.5, 0.0)
    out = layer(x, some, weights)
    assert torch.allclose(out[3], layer.shared(x)[3], atol=1e-6)
    assert not torch.allclose(out[0], layer.shared(x)[0], atol=1e-3)
    # where -1 stands among the picks changes nothing
    assert torch.allclose(out, layer(x, some.flip(1), weights.flip(1)), atol=1e-6)


def test_the_running_load_and_the_drops_are_counted_over_a_step():
    router = build("switch", capacity_factor=1.0).train()
    first, second = states(2, 40), states(2, 40, seed=2)
    routed = [router(hidden).experts for hidden in (first, second)]
    router.settle(0.0, low=0.5, high=2.0)
    experts = torch.cat(routed).flatten()
    share = torch.bincount(experts[experts >= 0], minlength=8) / (experts >= 0).sum()
    assert router.dropped == pytest.approx((experts < 0).float().mean().item())
    assert torch.allclose(router.load, torch.full((8,), 1 / 8).lerp(share, 0.1), atol=1e-6)


@pytest.mark.parametrize("name", ROUTERS.names())
def test_it_serves_requests(name: str):
    model = MoeModel(replace(SMALL, router=name)).initialise(1).eval()
    requests = [Request((1, 5 + i, 9, 200), 6) for i in range(5)]
    with capture(model) as recorder:
        served = sum(
            len(work.tokens) for works in serve(model, requests, slots=3, step_tokens=8, chunk=4) for work in works
        )
        routes, _ = recorder.take()
    assert len(routes) == served
