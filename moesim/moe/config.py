"""The shape of the bundled model, and what it is to the rest of moesim: a `ModelSpec`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from moesim.base.errors import FormatError, InputError, UnknownName

T = TypeVar("T")


def checked(kind: type[T], values: Any, path: str | Path, place: str) -> T:
    """Build a dataclass from a table of a file; keys that are not given take their defaults.

    Raises
    ------
    FormatError
        If a key is unknown or a value does not fit; names the key and what was expected.
    """
    known = sorted(field.name for field in fields(kind))  # type: ignore[arg-type]
    if not isinstance(values, dict):
        raise FormatError(path, place or "top level", f"expected a table of keys, found {type(values).__name__}")
    where = f"{place}." if place else ""
    for key in values:
        if key not in known:
            raise FormatError(path, f"{where}{key}", str(UnknownName("key", str(key), known)))
    try:
        return TypeAdapter(kind).validate_python(values, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise FormatError(path, f"{where}{key}", f"{first['msg']}, found {first['input']!r:.60}") from None
    except InputError as error:
        raise FormatError(path, place, str(error)) from None


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
        Name in `moesim.moe.routers.ROUTERS`.
    routed_scale
        Factor on the sum of the routed experts' outputs (DeepSeek-V3 uses 2.5).
    groups, group_limit
        Groups of experts and how many of them a token may pick from; read by routers that have groups.
    capacity_factor
        Picks that an expert takes of a batch (in serving: of a forward pass), in multiples of its even share; the
        rest is dropped. None is the router's own default, which but for ``switch`` (1.25) drops nothing.
    compete
        What competes for that room, and to be chosen by experts: the tokens of a ``"batch"``, or of a ``"sequence"``.
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
    groups: int = 8
    group_limit: int = 2
    capacity_factor: float | None = None
    compete: str = "batch"

    def __post_init__(self) -> None:
        for name in ("vocabulary", "layers", "hidden", "heads", "intermediate", "context"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise InputError(f"hidden {self.hidden} must be heads {self.heads} times an even width")
        if self.experts and not 0 < self.top_k <= self.experts:
            raise InputError(f"top_k {self.top_k} must lie between 1 and experts {self.experts}")
        if self.compete not in ("batch", "sequence"):
            raise InputError(f"compete {self.compete!r}: expected 'batch' or 'sequence'")
        if self.capacity_factor is not None and not self.capacity_factor > 0:
            raise InputError(f"capacity_factor {self.capacity_factor} must be above 0")

    def dense(self) -> MoeConfig:
        """Return the dense model of the same active size: one wide feed-forward part instead of the experts."""
        active = self.top_k + self.shared_experts
        return replace(self, experts=0, top_k=0, shared_experts=0, intermediate=active * self.intermediate)

    def to_json(self) -> str:
        """Return the configuration as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> MoeConfig:
        """Read a configuration written by `to_json`; keys that it lacks take their defaults.

        Raises
        ------
        FormatError
            The file is not JSON, has an unknown key, or a value that does not fit.
        """
        try:
            values = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(path, "", f"expected a model configuration in JSON, found {error}") from None
        return checked(cls, values, path, "")
