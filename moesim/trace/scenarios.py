"""Synthetic traces of one kind of imbalance each, W0 to W7, named as in Megatron-LM's proposal for such a benchmark.

The definitions are this project's own reading of those names. Ranks are those of a contiguous placement, rank r holding
experts r*E/ranks up to (r+1)*E/ranks, so that a scenario means what its name says there and a planner can undo it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError, UnknownName
from moesim.base.units import count
from moesim.spec import ModelSpec
from moesim.trace.checks import check_seed
from moesim.trace.synthetic import draw
from moesim.trace.trace import PREFILL, Trace

SCENARIOS: Final = {
    "W0": "balanced",
    "W1": "hot-expert-set",
    "W2": "hot-rank",
    "W3": "spread-hot",
    "W4": "ragged-sources",
    "W5": "zero-expert-rank",
    "W6": "rotating-hotspot",
    "W7": "burst",
}
"""Number and name of every scenario."""
_NEVER: Final = -1e9
_BURST: Final = 8
"""Steps from one burst to the next."""


def scenario(
    name: str,
    spec: ModelSpec,
    tokens: int,
    *,
    ranks: int = 8,
    step_tokens: int = 1024,
    share: float = 0.5,
    seed: int = 0,
) -> Trace:
    """Return a synthetic trace of one kind of imbalance.

    * W0 balanced: every expert is as likely as any other.
    * W1 hot-expert-set: as many experts as a rank holds, drawn anew for each layer, get ``share`` of the first picks.
    * W2 hot-rank: the experts of one rank do, in all layers.
    * W3 spread-hot: as many experts do, spread evenly over the ranks.
    * W4 ragged-sources: balanced experts, but rank r sends tokens in proportion to 1 / (r + 1).
    * W5 zero-expert-rank: the experts of the last rank are never picked.
    * W6 rotating-hotspot: the hot rank moves on by one in every step.
    * W7 burst: balanced, but every eighth step has a hot rank.

    Parameters
    ----------
    name
        Number or name: ``"W2"``, ``"hot-rank"``.
    tokens, step_tokens
        Tokens in all, and of a step of all ranks together.
    ranks
        Ranks of the contiguous placement that is meant.
    share
        Share of the first picks that go to hot experts; further picks of a token are other experts.
    seed
        For all that is drawn.

    Raises
    ------
    UnknownName
        If there is no such scenario.
    InputError
        If experts do not divide by ranks, or a number is out of range.
    """
    number = {known: number for number, known in SCENARIOS.items()}.get(name, name)
    if number not in SCENARIOS:
        raise UnknownName("scenario", name, [*SCENARIOS, *SCENARIOS.values()])
    E = spec.experts
    if ranks < 2 or E % ranks or step_tokens < 1 or tokens < 0 or not 0 < share < 1:
        raise InputError(
            f"scenario: expected at least 2 ranks that divide the {count(E, 'expert')}, step_tokens >= 1, tokens >= 0 "
            f"and share between 0 and 1, got ranks {ranks}, step_tokens {step_tokens}, tokens {tokens}, share {share}"
        )
    if number == "W5" and E - E // ranks < spec.top_k:
        raise InputError(
            f"scenario W5: a token picks {spec.top_k} of the {count(E - E // ranks, 'expert')} of other ranks; take "
            "more ranks"
        )
    check_seed(seed)
    rng = np.random.default_rng(seed)
    step = np.arange(tokens) // step_tokens
    scores = _scores(number, spec, ranks, share, rng)
    variant = _variant(number, step, ranks)
    routes, weights = draw(
        spec,
        tokens,
        lambda first, last: (scores[variant[first:last], layer] for layer in range(spec.layers)),
        1.0,
        rng,
    )
    source = _sources(number, step_tokens, ranks)[np.arange(tokens) % step_tokens]
    origin: dict[str, Any] = {"synthetic": True, "generator": "scenario", "scenario": f"{number} {SCENARIOS[number]}"}
    return Trace(
        spec,
        routes,
        weights,
        step=step,
        request=step * ranks + source,
        source=source,
        phase=np.full(tokens, PREFILL),
        origin=origin | {"ranks": ranks, "step_tokens": step_tokens, "share": share, "seed": seed},
    )


def _scores(number: str, spec: ModelSpec, ranks: int, share: float, rng: np.random.Generator) -> Array:
    """Return log popularity, float32 [variants, layers, experts]; variant r has its hotspot on rank r, 0 has none."""
    E, held = spec.experts, spec.experts // ranks
    # held * boost / (held * boost + E - held) = share
    hot = np.log(share * (E - held) / ((1 - share) * held))
    variants = ranks + 1 if number in ("W6", "W7") else 1
    scores = np.zeros((variants, spec.layers, E), np.float32)
    if number == "W1":
        for layer in range(spec.layers):
            scores[0, layer, rng.choice(E, held, replace=False)] = hot
    elif number == "W2":
        scores[0, :, :held] = hot
    elif number == "W3":
        scores[0, :, np.arange(held) * E // held] = hot
    elif number == "W5":
        scores[0, :, E - held :] = _NEVER
    for rank in range(variants - 1):
        scores[rank + 1, :, rank * held : (rank + 1) * held] = hot
    return scores


def _variant(number: str, step: Array, ranks: int) -> Array:
    """Return which row of the scores each token takes, [tokens]."""
    if number == "W6":
        return 1 + step % ranks
    if number == "W7":
        return np.where(step % _BURST == _BURST - 1, 1 + step // _BURST % ranks, 0)
    return np.zeros_like(step)


def _sources(number: str, step_tokens: int, ranks: int) -> Array:
    """Return the rank that each token of a step comes from, [step_tokens]."""
    part = 1 / (np.arange(ranks) + 1) if number == "W4" else np.ones(ranks)
    last = np.cumsum(part) / part.sum() * step_tokens
    return np.minimum(np.searchsorted(last, np.arange(step_tokens) + 0.5), ranks - 1)
