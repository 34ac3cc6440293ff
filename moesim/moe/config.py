"""The shape of the bundled model, and what it is to the rest of moesim: a `ModelSpec`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from moesim.base.errors import FormatError, InputError
from moesim.spec import Attention, ModelSpec

MODEL_NAME = "moesim-bundled-moe"


@dataclass(frozen=True)
class MoeConfig:
    """Hyperparameters of the decoder-only transformer.

    Parameters
    ----------
    vocabulary
        Tokens of the tokenizer; the embedding is tied to the output layer.
    layers
        Decoder layers; each has attention and a feed-forward part.
    hidden
        Width of the residual stream.
    heads
        Attention heads, each of width `hidden / heads`.
    experts
        Routed experts of a layer; 0 makes the feed-forward part dense.
    top_k
        Routed experts that a token picks.
    shared_experts
        Experts that every token uses, beside the routed ones.
    intermediate
        Width of one expert (of the dense feed-forward part when `experts` is 0).
    context
        Longest sequence in tokens.
    router
        Name in `moesim.moe.router.ROUTERS`.
    routed_scale
        Factor on the sum of the routed experts' outputs (DeepSeek-V3 uses 2.5).
    """

    vocabulary: int = 4096
    layers: int = 8
    hidden: int = 128
    heads: int = 4
    experts: int = 64
    top_k: int = 6
    shared_experts: int = 1
    intermediate: int = 48
    context: int = 512
    router: str = "sigmoid-bias"
    routed_scale: float = 2.5

    def __post_init__(self) -> None:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise InputError(f"hidden {self.hidden} must be heads {self.heads} times an even width")
        if self.experts and not 0 < self.top_k <= self.experts:
            raise InputError(f"top_k {self.top_k} must lie between 1 and experts {self.experts}")

    def dense(self) -> MoeConfig:
        """Return the dense model of the same active size: one wide feed-forward part instead of the experts."""
        active = self.top_k + self.shared_experts
        return replace(self, experts=0, top_k=0, shared_experts=0, intermediate=active * self.intermediate)

    def to_json(self) -> str:
        """Return the configuration as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> MoeConfig:
        """Read a configuration written by `to_json`.

        Raises
        ------
        FormatError
            The file is not JSON or has unknown or missing keys.
        """
        try:
            values = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise FormatError(path, "", f"expected a model configuration in JSON, found {error}") from None
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            raise FormatError(path, "top level", f"expected exactly the keys {', '.join(sorted(known))}")
        return cls(**values)


def spec_of(config: MoeConfig) -> ModelSpec:
    """Return what the model is to the rest of moesim.

    Raises
    ------
    InputError
        If the configuration is that of the dense model.
    """
    if not config.experts:
        raise InputError("a dense model has no experts, hence no routing trace")
    return ModelSpec(
        name=MODEL_NAME,
        layer_ids=tuple(range(config.layers)),
        num_hidden_layers=config.layers,
        experts=config.experts,
        top_k=config.top_k,
        hidden=config.hidden,
        intermediate=config.intermediate,
        shared_experts=config.shared_experts,
        shared_intermediate=config.shared_experts * config.intermediate,
        attention=Attention(heads=config.heads, kv_heads=config.heads, head_dim=config.hidden // config.heads),
        vocab=config.vocabulary,
        tied_embeddings=True,
    )
