"""Synthetic traces for stress and for tests; their origin always says ``"synthetic": true``.

`lognormal` and `zipf` draw every token and layer independently: they have skew and nothing else. `router` draws
tokens of domains and requests from a latent space and routes them as a linear router would, so that it also has
co-activation, affinity between layers, reuse between tokens and domains that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.spec import ModelSpec
from moesim.trace.checks import check_seed
from moesim.trace.trace import DECODE, PREFILL, Trace

_CHUNK: Final = 65_536
"""Tokens drawn at a time: bounds memory."""
_LATENT: Final = 16
"""Dimensions of the latent space in which the router lives."""


def lognormal(
    spec: ModelSpec, tokens: int, *, sigma: float = 1.0, seed: int = 0, request_tokens: int = 256, decode: float = 0.0
) -> Trace:
    """Return a trace whose experts have log-normal popularity, another draw in each layer.

    Parameters
    ----------
    sigma
        Standard deviation of log popularity; 0 is balanced.
    request_tokens
        Tokens of a request; the last one may be shorter.
    decode
        Share of each request that is decode, at its end.
    """
    check_seed(seed)
    rng = np.random.default_rng(seed)
    scores = sigma * rng.standard_normal((spec.layers, spec.experts))
    facts = {"generator": "lognormal", "sigma": sigma, "seed": seed}
    return _independent(spec, tokens, scores, rng, facts, request_tokens, decode)


def zipf(
    spec: ModelSpec, tokens: int, *, alpha: float = 1.0, seed: int = 0, request_tokens: int = 256, decode: float = 0.0
) -> Trace:
    """Return a trace whose experts have popularity rank^-alpha, in another order in each layer.

    Parameters
    ----------
    alpha
        Exponent; 0 is balanced.
    request_tokens, decode
        As for :func:`lognormal`.
    """
    check_seed(seed)
    rng = np.random.default_rng(seed)
    ranked = -alpha * np.log(np.arange(1, spec.experts + 1))
    scores = np.stack([rng.permutation(ranked) for _ in range(spec.layers)])
    facts = {"generator": "zipf", "alpha": alpha, "seed": seed}
    return _independent(spec, tokens, scores, rng, facts, request_tokens, decode)


def router(
    spec: ModelSpec,
    tokens: int,
    *,
    domains: int = 4,
    skew: float = 0.5,
    temperature: float = 0.6,
    seed: int = 0,
    request_tokens: int = 256,
    decode: float = 0.0,
) -> Trace:
    """Return a trace of a linear router over latent tokens of several domains.

    A token's latent vector is the sum of its domain's, its request's, one that wanders from token to token, and
    noise; it wanders on from layer to layer. An expert's score is its product with the token's vector, plus a
    bias, plus Gumbel noise.

    Parameters
    ----------
    domains
        Number of domains; each request belongs to one.
    skew
        Standard deviation of the experts' biases.
    temperature
        Scale of the Gumbel noise; high values drown the structure.
    request_tokens, decode
        As for :func:`lognormal`.
    """
    if domains < 1:
        raise InputError(f"synthetic router: expected at least 1 domain, got {domains}")
    check_seed(seed)
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = _columns(tokens, request_tokens, decode)
    requests = int(columns["request"].max(initial=-1)) + 1
    domain_of = rng.integers(domains, size=requests)
    experts = rng.standard_normal((spec.layers, spec.experts, _LATENT)).astype(np.float32)
    bias = (skew * rng.standard_normal((spec.layers, spec.experts))).astype(np.float32)
    centre = rng.standard_normal((domains, _LATENT)).astype(np.float32)
    own = rng.standard_normal((requests, _LATENT)).astype(np.float32)
    turn = np.float32(0.35) * rng.standard_normal((spec.layers, _LATENT, _LATENT)).astype(np.float32) / np.float32(4)
    wander = np.zeros(_LATENT, np.float32)

    def scores(first: int, last: int) -> Iterator[Array]:
        nonlocal wander
        request = columns["request"][first:last]
        walk = _smooth(rng.standard_normal((last - first, _LATENT)).astype(np.float32), wander)
        wander = walk[-1]
        noise = rng.standard_normal((last - first, _LATENT)).astype(np.float32)
        latent = (0.4 * centre[domain_of[request]] + 0.25 * own[request] + 0.4 * walk + 0.4 * noise).astype(np.float32)
        for layer in range(spec.layers):
            latent = latent + latent @ turn[layer]
            yield latent @ experts[layer].T / np.float32(2) + bias[layer]

    routes, weights = draw(spec, tokens, scores, temperature, rng)
    origin = {"synthetic": True, "generator": "router", "domains": domains, "skew": skew, "temperature": temperature}
    return Trace(
        spec,
        routes,
        weights,
        **columns,
        domain=domain_of[columns["request"]],
        domains=tuple(f"domain-{i}" for i in range(domains)),
        origin=origin | {"seed": seed},
    )


def _independent(
    spec: ModelSpec,
    tokens: int,
    scores: Array,
    rng: np.random.Generator,
    facts: dict[str, Any],
    request_tokens: int,
    decode: float,
) -> Trace:
    columns: dict[str, Any] = _columns(tokens, request_tokens, decode)
    scores = scores.astype(np.float32)
    routes, weights = draw(spec, tokens, lambda first, last: iter(scores), 1.0, rng)
    return Trace(spec, routes, weights, **columns, origin={"synthetic": True} | facts)


def _columns(tokens: int, request_tokens: int, decode: float) -> dict[str, Array]:
    if tokens < 0 or request_tokens < 1 or not 0 <= decode <= 1:
        raise InputError(
            f"synthetic trace: expected tokens >= 0, request_tokens >= 1 and decode in 0..1, "
            f"got {tokens}, {request_tokens}, {decode}"
        )
    row = np.arange(tokens)
    position = row % request_tokens
    phase = np.where(position >= round((1 - decode) * request_tokens), DECODE, PREFILL)
    return {"request": row // request_tokens, "position": position, "phase": phase}


def draw(
    spec: ModelSpec,
    tokens: int,
    scores: Callable[[int, int], Iterator[Array]],
    temperature: float,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Draw top_k different experts a token and layer; Gumbel noise makes the choice proportional to exp(score).

    ``scores(first, last)`` gives the scores of some tokens layer by layer, [tokens or 1, experts].
    """
    routes = np.empty((tokens, spec.layers, spec.top_k), np.int16)
    weights = np.empty(routes.shape, np.float16)
    for first in range(0, tokens, _CHUNK):
        last = min(first + _CHUNK, tokens)
        for layer, score in enumerate(scores(first, last)):
            uniform = rng.random((last - first, spec.experts), np.float32)
            gumbel = -np.log(-np.log(np.clip(uniform, 1e-7, 1 - 1e-7)))
            noisy = score + np.float32(temperature) * gumbel
            best = np.argpartition(-noisy, spec.top_k - 1, axis=1)[:, : spec.top_k]
            values = np.take_along_axis(noisy, best, axis=1)
            order = np.argsort(-values, axis=1)
            values = np.take_along_axis(values, order, axis=1)
            gate = np.exp(values - values[:, :1])
            routes[first:last, layer] = np.take_along_axis(best, order, axis=1)
            weights[first:last, layer] = gate / gate.sum(axis=1, keepdims=True)
    return routes, weights


def _smooth(steps: Array, start: Array, keep: float = 0.8) -> Array:
    """Return the first-order autoregressive sequence of unit variance driven by ``steps`` [tokens, latent]."""
    from scipy.signal import lfilter

    gain = np.sqrt(1 - keep**2)
    smooth, _ = lfilter([gain], [1.0, -keep], steps, axis=0, zi=(keep * start)[None])
    return np.asarray(smooth, np.float32)
