"""The judge of routers (extra `gpu`)."""

from __future__ import annotations

from typing import Any

from moesim.testing.laws import law


def check_router(router: Any, *, config: Any = None, causal: bool = True, alone: bool = True) -> None:
    """Judge a router: a class ``Router(config, layer)``, see `moesim.moe.routers.base`.

    Ids lie in -1..E-1 and no token has an expert twice; weights are finite, not negative, and 0 where there is no
    expert; at most `picks` experts a token; the recorder is told once what was decided; the same input gives the same
    routing, alone or beside other sequences; in evaluation no token depends on later ones; gradients equal numerical
    ones.

    Parameters
    ----------
    config
        A `MoeConfig` that suits the router; default 8 experts in 4 groups, top-2.
    causal
        Whether a token must not depend on later ones.
    alone
        Whether a sequence must not depend on others of its batch; not so where tokens compete.

    Raises
    ------
    Verdict
        If a law is broken.
    """
    import torch

    from moesim.moe.config import MoeConfig
    from moesim.moe.routers.base import Context

    config = config or MoeConfig(vocabulary=50, hidden=12, heads=2, experts=8, top_k=2, groups=4, context=48)
    generator = torch.Generator().manual_seed(0)
    one = router(config, 0)
    for parameter in one.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    hidden = torch.randn(3, 40, config.hidden, generator=generator)
    tokens = torch.randint(0, config.vocabulary, (3, 40), generator=generator)
    width = router.picks(config)

    for mode in (False, True):
        one.train(mode)
        sink = _Sink()
        one.recorder = sink
        routing = one(hidden, Context(tokens, draw=(1, 2)))
        one.recorder = None
        experts, weights = routing.experts, routing.weights
        law(experts.shape == weights.shape == (3, 40, width), f"expected [3, 40, {width}], got {tuple(experts.shape)}")
        law(bool(((experts >= -1) & (experts < config.experts)).all()), "an expert id is not in -1..E-1")
        for row in experts.flatten(0, 1).tolist():
            picked = [expert for expert in row if expert >= 0]
            law(len(picked) == len(set(picked)), f"a token has an expert twice: {row}")
        law(bool((torch.isfinite(weights) & (weights >= 0)).all()), "weights must be finite and not negative")
        law(bool((weights[experts < 0] == 0).all()), "the weight of no expert must be 0")
        law(len(sink.calls) == 1, f"the recorder was told {len(sink.calls)} times in one forward pass")
        layer, told, told_weights = sink.calls[0]
        same = layer == 0 and torch.equal(told, experts.flatten(0, 1))
        law(same and torch.equal(told_weights, weights.flatten(0, 1)), "the recorder was told something else")
        law(all(bool(torch.isfinite(loss)) for loss in routing.losses.values()), "a loss is not finite")

    one.eval()
    full, _ = _spread(one(hidden, Context(tokens)), config.experts)
    again, _ = _spread(one(hidden, Context(tokens)), config.experts)
    law(torch.equal(full, again), "the same input gave another routing")
    if alone:
        by_itself, _ = _spread(one(hidden[1:2], Context(tokens[1:2])), config.experts)
        law(torch.allclose(full[1:2], by_itself, atol=1e-5), "a sequence is routed by what else is in the batch")
    if causal:
        changed = hidden.clone()
        changed[:, 25:] = torch.randn(3, 15, config.hidden, generator=generator)
        early, _ = _spread(one(changed, Context(tokens)), config.experts)
        law(torch.allclose(full[:, :25], early[:, :25], atol=1e-5), "a token is routed by later ones")
    _check_gradients(one, config)


class _Sink:
    def __init__(self) -> None:
        self.calls: list[tuple[int, Any, Any]] = []

    def record(self, layer: int, experts: Any, weights: Any) -> None:
        self.calls.append((layer, experts.detach(), weights.detach()))


def _spread(routing: Any, experts: int) -> tuple[Any, Any]:
    """Return the weight of every expert [..., experts], and whether it was picked."""
    import torch

    shape = (*routing.experts.shape[:-1], experts + 1)
    index = torch.where(routing.experts < 0, experts, routing.experts)
    weights = torch.zeros(shape, dtype=routing.weights.dtype).scatter_add(-1, index, routing.weights)
    return weights[..., :-1], torch.zeros(shape, dtype=torch.bool).scatter(-1, index, True)[..., :-1]


def _check_gradients(router: Any, config: Any) -> None:
    """Compare gradients of the dense weights and of every loss with numerical ones, in float64 and with fixed noise."""
    import torch
    from torch.func import functional_call

    from moesim.moe.routers.base import Context

    router = router.double().train()
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(2, 6, config.hidden, dtype=torch.float64, generator=generator)
    context = Context(torch.randint(0, config.vocabulary, (2, 6), generator=generator), draw=(0, 0))
    names = [name for name, _ in router.named_parameters()]
    # one number out of many keeps the numerical side cheap and still touches every weight
    mixer = torch.randn(2, 6, config.experts, dtype=torch.float64, generator=generator)

    def outputs(x: Any, *parameters: Any) -> tuple[Any, ...]:
        routing = functional_call(router, dict(zip(names, parameters, strict=True)), (x, context))
        weights, _ = _spread(routing, config.experts)
        return ((weights * mixer).sum(), *routing.losses.values())

    inputs = (hidden, *(p.detach() for p in router.parameters()))
    asked = tuple(x.clone().requires_grad_() for x in inputs)
    results = outputs(*asked)
    law(names == [] or all(r.requires_grad for r in results), "an output has no gradient")
    if names:
        law(torch.autograd.gradcheck(outputs, asked, raise_exception=False), "gradients differ from numerical ones")
