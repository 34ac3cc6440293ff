"""What the bundled model is to the rest of moesim: a `ModelSpec`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moesim.base.errors import InputError
from moesim.moe.config import MoeConfig
from moesim.moe.routers import ROUTERS, picks_of
from moesim.spec import Attention, ModelSpec
from moesim.trace import Trace

MODEL_NAME = "moesim-bundled-moe"


def spec_of(config: MoeConfig) -> ModelSpec:
    """Return what the model is to the rest of moesim.

    Raises
    ------
    InputError
        If the configuration is that of the dense model.
    """
    if not config.experts:
        raise InputError("a dense model has no experts, hence no routing trace")
    grouped = ROUTERS.get(config.router).grouped
    return ModelSpec(
        name=MODEL_NAME,
        layer_ids=tuple(range(config.layers)),
        num_hidden_layers=config.layers,
        experts=config.experts,
        top_k=picks_of(config),
        hidden=config.hidden,
        intermediate=config.intermediate,
        shared_experts=config.shared_experts,
        groups=config.groups if grouped else 1,
        group_limit=config.group_limit if grouped else 1,
        shared_intermediate=config.shared_experts * config.intermediate,
        attention=Attention(heads=config.heads, kv_heads=config.heads, head_dim=config.hidden // config.heads),
        vocab=config.vocabulary,
        tied_embeddings=True,
    )


def narrow(path: str | Path, config: MoeConfig) -> Trace:
    """Read a trace that was just written, and write it again no wider than the busiest token needs.

    Where experts choose, any number of them may choose a token, so that a trace is recorded as wide as there are
    experts; its `top_k` is then the most that a token got.
    """
    trace = Trace.read(path)
    if picks_of(config) <= config.top_k or trace.routes is None or not trace.rows:
        return trace
    most = max(1, int((trace.routes >= 0).sum(-1).max()))
    # picks come first, then -1: nothing is cut off that is a pick
    if most == trace.spec.top_k or (trace.routes[..., most:] >= 0).any():
        return trace
    narrowed = replace(
        trace,
        spec=replace(trace.spec, top_k=most),
        routes=trace.routes[..., :most],
        weights=None if trace.weights is None else trace.weights[..., :most],
    )
    narrowed.write(path)
    return narrowed
