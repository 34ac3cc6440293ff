"""Which shapes, tokens and experts are measured, coarse lines first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from moesim.base.errors import UnknownName
from moesim.moe.config import MoeConfig
from moesim.moe.profile.experts import Case
from moesim.moe.spec import spec_of
from moesim.spec import ModelSpec

MODELS: Final = (
    "mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "qwen3-235b-a22b", "gpt-oss-120b", "bundled",
)  # fmt: skip
TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096, 2, 8, 32, 128, 512, 2048)
ACTIVE: Final = (1, 8, 64, 2, 4, 16, 32)
COARSE: Final = (7, 3)
"""How many of the tokens and of the active experts the first pass takes."""
COMPARED: Final = ((1, 8), (16, 8), (64, 8), (256, 8), (1024, 8), (4096, 8), (16, 64), (256, 64))
"""Tokens per expert and active experts at which the other kernels stand beside ours."""


def shape_of(name: str, config: MoeConfig | None = None) -> ModelSpec:
    """Return the model of that name; `bundled` is the bundled one, of a given configuration or the default."""
    if name == "bundled":
        return spec_of(config or MoeConfig())
    from moesim.presets import PRESETS

    if name not in PRESETS:
        raise UnknownName("model", name, ["bundled", *PRESETS])
    return PRESETS[name]


def cases(
    spec: ModelSpec, kernels: list[tuple[str, str]], tokens: tuple[int, ...], active: tuple[int, ...]
) -> Iterator[Case]:
    """Yield what to measure of one shape: our kernels (or what stands in) over the whole grid, others at points.

    Whole lines of tokens come one after another, so that a run that ends early leaves a full, smaller grid.
    """
    held = tuple(a for a in active if a <= spec.experts)
    first = [pair for pair in kernels if pair[0] == "triton"] or kernels[:1]
    for m in tokens:
        for kernel, dtype in kernels:
            whole = (kernel, dtype) in first
            for a in held:
                nearest = min(8, max(held))
                if whole or (m, a) in COMPARED or (a == nearest and (m, 8) in COMPARED):
                    yield Case(kernel, dtype, spec.hidden, spec.intermediate, m, a)
