"""Small models and traces, and what hypothesis draws of them."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from moesim.spec import ModelSpec
from moesim.trace import Trace


def small_spec(layers: int = 2, experts: int = 8, top_k: int = 2) -> ModelSpec:
    return ModelSpec("small", tuple(range(layers)), layers, experts=experts, top_k=top_k, hidden=16, intermediate=32)


def random_trace(
    seed: int, lengths: list[int], *, decode: float = 0.0, spec: ModelSpec | None = None, **columns
) -> Trace:
    """A trace of requests of the given lengths whose last ``decode`` share of tokens is decode."""
    spec = spec or small_spec()
    rng = np.random.default_rng(seed)
    T = sum(lengths)
    scores = rng.random((T, spec.layers, spec.experts))
    routes = np.argsort(scores, axis=-1)[..., : spec.top_k]
    request = np.repeat(np.arange(len(lengths)), lengths)
    position = np.concatenate([np.arange(n) for n in lengths]) if lengths else np.zeros(0, int)
    phase = position >= (1 - decode) * np.repeat(lengths, lengths)
    return Trace(spec, routes, **({"request": request, "position": position, "phase": phase} | columns))


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=30)
"""Lengths of requests."""

law = settings(deadline=None, max_examples=60)
"""For laws over inputs: the first example compiles, so no deadline an example."""
