"""The static facts of a Mixture-of-Experts model.

Symbols used everywhere: L MoE layers, E routed experts, K experts a token picks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from moesim.base.errors import InputError
from moesim.base.units import count

FP8_BLOCK: Final = 1.0 + 4 / 128
"""Bytes per element of block-scaled fp8: one byte and a float32 scale per 128 elements (DeepSeek-V3 report)."""
BF16: Final = 2.0
MXFP4: Final = 0.5 + 1 / 32
"""Bytes per element of MXFP4: half a byte and one shared exponent byte per 32 elements (OCP MX specification)."""
NVFP4: Final = 0.5 + 1 / 16
"""Bytes per element of NVFP4: half a byte and one fp8 scale per 16 elements."""


@dataclass(frozen=True)
class Attention:
    """Shape of the attention block, for its weights, arithmetic and KV cache.

    Grouped-query attention is ``heads, kv_heads, head_dim``; latent attention (MLA) adds the ranks, and then
    ``head_dim`` is the non-rotary part of a query head.

    Raises
    ------
    InputError
        If heads or their width are below 1, or a rank or another width is negative.
    """

    heads: int
    kv_heads: int
    head_dim: int
    q_rank: int = 0
    kv_rank: int = 0
    rope_dim: int = 0
    value_dim: int = 0

    def __post_init__(self) -> None:
        for name in (f.name for f in dataclasses.fields(self)):
            least = 1 if name in ("heads", "kv_heads", "head_dim") else 0
            if getattr(self, name) < least:
                raise InputError(f"attention: {name} must be at least {least}, got {getattr(self, name)}")

    @property
    def latent(self) -> bool:
        """Whether this is latent attention (MLA)."""
        return self.kv_rank > 0

    def parameters(self, hidden: int) -> int:
        """Return the number of projection weights of one layer."""
        if not self.latent:
            return hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        query_out = self.heads * (self.head_dim + self.rope_dim)
        query = hidden * self.q_rank + self.q_rank * query_out if self.q_rank else hidden * query_out
        expand = self.kv_rank * self.heads * (self.head_dim + self.value_dim)
        key_value = hidden * (self.kv_rank + self.rope_dim) + expand
        return query + key_value + self.heads * self.value_dim * hidden

    def score_flops(self) -> float:
        """Return the FLOPs of one query against one cached position (scores and weighted sum)."""
        if not self.latent:
            return 4.0 * self.heads * self.head_dim
        # absorbed form: scores and values both live in the latent space
        return 2.0 * self.heads * (2 * self.kv_rank + self.rope_dim)

    def cache_elements(self) -> int:
        """Return the elements of KV cache that one token keeps in one layer."""
        return self.kv_rank + self.rope_dim if self.latent else 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class ModelSpec:
    """Static facts of an MoE model.

    Parameters
    ----------
    name
        Name of the model.
    layer_ids
        Decoder index of each MoE layer, ascending; their number is L.
    num_hidden_layers
        All decoder layers, dense ones included.
    experts, top_k
        Routed experts per MoE layer (E) and experts a token picks (K).
    hidden, intermediate
        Model width and the width of one routed expert.
    shared_experts, shared_intermediate
        Experts that every token visits, and their total width.
    groups, group_limit
        Expert groups and groups a token may pick from (node-limited routing); 1 and 1 where there are none.
    dense_intermediate
        Width of the feed-forward block of dense decoder layers, 0 where there are none.
    gated
        Whether an expert has a gate projection (SwiGLU: three matrices) or not (two matrices).
    attention
        Shape of attention, or None where it is not known.
    vocab, tied_embeddings
        For parameter counts.
    weight_bytes, dispatch_bytes, combine_bytes
        Bytes per element of expert weights, of tokens on their way to experts and of results on the way back.
    left_out
        MoE layers of the model that are not among ``layer_ids``, where a trace holds only some of them. They are no
        dense layers, and their weights take memory all the same. No part of what names a model.

    Raises
    ------
    InputError
        If these numbers cannot be those of a model; the message names the model and the field.
    """

    name: str
    layer_ids: tuple[int, ...]
    num_hidden_layers: int
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    shared_experts: int = 0
    shared_intermediate: int = 0
    groups: int = 1
    group_limit: int = 1
    dense_intermediate: int = 0
    gated: bool = True
    attention: Attention | None = None
    vocab: int = 0
    tied_embeddings: bool = False
    weight_bytes: float = BF16
    dispatch_bytes: float = BF16
    combine_bytes: float = BF16
    left_out: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer_ids", tuple(int(i) for i in self.layer_ids))
        for name in ("num_hidden_layers", "experts", "top_k", "hidden", "intermediate", "groups", "group_limit"):
            if getattr(self, name) < 1:
                raise InputError(f"model {self.name!r}: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("shared_experts", "shared_intermediate", "dense_intermediate", "vocab"):
            if getattr(self, name) < 0:
                raise InputError(f"model {self.name!r}: {name} must be at least 0, got {getattr(self, name)}")
        if self.top_k > self.experts:
            raise InputError(
                f"model {self.name!r}: top_k {self.top_k} is more than its {count(self.experts, 'expert')}"
            )
        if not self.layer_ids or list(self.layer_ids) != sorted(set(self.layer_ids)):
            raise InputError(f"model {self.name!r}: layer_ids must be ascending and unique, got {self.layer_ids}")
        if self.layer_ids[0] < 0 or self.layer_ids[-1] >= self.num_hidden_layers:
            raise InputError(
                f"model {self.name!r}: layer_ids must lie in 0..{self.num_hidden_layers - 1}, got {self.layer_ids}"
            )
        if not 0 <= self.left_out <= self.num_hidden_layers - len(self.layer_ids):
            raise InputError(
                f"model {self.name!r}: left_out must lie in 0..{self.num_hidden_layers - len(self.layer_ids)}, the "
                f"decoder layers that are not among layer_ids, got {self.left_out}"
            )
        if self.experts % self.groups:
            raise InputError(
                f"model {self.name!r}: {count(self.groups, 'group')} do not divide {count(self.experts, 'expert')}"
            )
        if self.group_limit > self.groups:
            raise InputError(
                f"model {self.name!r}: group_limit {self.group_limit} is more than its {count(self.groups, 'group')}"
            )
        for name in ("weight_bytes", "dispatch_bytes", "combine_bytes"):
            if not 0 < getattr(self, name) <= 8:
                raise InputError(f"model {self.name!r}: {name} must lie in (0, 8], got {getattr(self, name)}")

    @property
    def layers(self) -> int:
        """Number of MoE layers, L."""
        return len(self.layer_ids)

    @property
    def moe_layers(self) -> int:
        """Number of MoE layers of the whole model, those left out too."""
        return self.layers + self.left_out

    @property
    def stands_for(self) -> float:
        """MoE layers of the whole model for each of ``layer_ids``, 1 where none is left out."""
        return self.moe_layers / self.layers

    @property
    def dense_layers(self) -> int:
        """Number of decoder layers that are dense."""
        return self.num_hidden_layers - self.moe_layers

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert."""
        return (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def expert_bytes(self) -> float:
        """Bytes of one routed expert's weights."""
        return self.expert_parameters * self.weight_bytes

    @property
    def expert_flops(self) -> float:
        """FLOPs of one token in one routed expert."""
        return 2.0 * self.expert_parameters

    @property
    def shared_parameters(self) -> int:
        """Weights of all shared experts of one MoE layer."""
        return (3 if self.gated else 2) * self.hidden * self.shared_intermediate

    @property
    def dispatch_token_bytes(self) -> float:
        """Bytes of one copy of a token on its way to an expert."""
        return self.hidden * self.dispatch_bytes

    @property
    def combine_token_bytes(self) -> float:
        """Bytes of one copy of a result on its way back."""
        return self.hidden * self.combine_bytes

    def parameters(self, active: bool = False) -> int:
        """Return the number of weights of the whole model, or only those one token uses.

        Norms and biases are left out (below 0.01 % of any model here).
        """
        per_moe = (self.top_k if active else self.experts) * self.expert_parameters
        per_moe += self.shared_parameters + self.hidden * self.experts
        attention = self.attention.parameters(self.hidden) if self.attention else 0
        embeddings = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        dense = (3 if self.gated else 2) * self.hidden * self.dense_intermediate
        return self.moe_layers * per_moe + self.dense_layers * dense + self.num_hidden_layers * attention + embeddings

    def at_dimensions(self, other: ModelSpec) -> ModelSpec:
        """Return this model's routing (layers, experts, top_k, groups) at another model's dimensions and dtypes.

        A small model's bytes are latency-bound and would hide what placement does; replaying its routing at
        production dimensions shows it. Results say so through the name, ``"mine @ theirs"``.

        Depth is this model's, dense layers included; every width is the other's, that of dense layers and of the
        output head too. Where only this model has dense layers, they get the width that one token uses in a layer of
        the other, as DeepSeek-V2 and V3 and GLM-4.5 have it.
        """
        wanted = (
            "hidden", "intermediate", "gated", "attention", "vocab", "tied_embeddings", "weight_bytes",
            "dispatch_bytes", "combine_bytes",
        )  # fmt: skip
        changes = {name: getattr(other, name) for name in wanted}
        changes["shared_intermediate"] = other.shared_intermediate if self.shared_experts else 0
        used = other.top_k * other.intermediate + other.shared_intermediate
        dense = (other.dense_intermediate or used) if self.dense_layers else 0
        return dataclasses.replace(self, name=f"{self.name} @ {other.name}", dense_intermediate=dense, **changes)

    def whole(self) -> ModelSpec:
        """Return the model with all its MoE layers; those left out take the last places that no layer has."""
        free = sorted(set(range(self.num_hidden_layers)) - set(self.layer_ids))
        ids = sorted([*self.layer_ids, *free[len(free) - self.left_out :]])
        return dataclasses.replace(self, layer_ids=tuple(ids), left_out=0)

    def only(self, layers: Sequence[int]) -> ModelSpec:
        """Return the model with some of its MoE layers, ordinals in ascending order; the others are left out."""
        ids = tuple(self.layer_ids[i] for i in layers)
        return dataclasses.replace(self, layer_ids=ids, left_out=self.moe_layers - len(ids))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data = dataclasses.asdict(self)
        if not self.left_out:
            del data["left_out"]  # as files say it that were written before
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Build a spec from plain data.

        Raises
        ------
        InputError
            If a key is unknown, missing, or has a value of the wrong kind.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise InputError(f"model spec: unknown keys {unknown}; known ones are {sorted(known)}")
        values = dict(data)
        try:
            if isinstance(values.get("attention"), Mapping):
                values["attention"] = Attention(**values["attention"])
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise InputError(f"model spec: {error}") from None

    @classmethod
    def preset(cls, name: str) -> ModelSpec:
        """Return a published model by name, see `moesim.presets`.

        Raises
        ------
        UnknownName
            If there is no such preset.
        """
        from moesim.presets import preset

        return preset(name)

    @classmethod
    def find(cls, model: str | Path) -> ModelSpec:
        """Return a preset by name, or a model by its Hugging Face ``config.json`` (the file or its folder).

        Raises
        ------
        InputError
            If there is neither such a preset nor such a file, or the file does not describe an MoE model.
        """
        from moesim.hf_config import find

        return find(model)


def __getattr__(name: str) -> Any:
    # the presets need the type, so they are found when they are first asked for
    if name == "PRESETS":
        from moesim.presets import PRESETS

        return PRESETS
    raise AttributeError(f"module 'moesim.spec' has no attribute {name!r}")
