"""Plan: a placement with its score, its proven bound and all it was made from; reading and writing it as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moesim.base.arrays import Array, Sealed, digest, seal
from moesim.base.errors import FormatError, InputError
from moesim.base.files import write_text
from moesim.base.version import VERSION
from moesim.placement import Placement

SCHEMA: Final = "moesim-plan/1"
"""Format and version of plan files; the number changes when an old reader could misread a new file."""


@dataclass(frozen=True, eq=False)
class Plan(Sealed):
    """What ``solve()`` answers.

    Parameters
    ----------
    placement
        Expert of every slot.
    policy, transport
        Dispatch policy and transport that the plan was scored under, and that should run.
    score_s
        Mean seconds of a step on the traffic it was fitted to.
    bound_s
        Seconds of a step that no placement with these slots can beat on that traffic.
    layer_score_s, layer_bound_s
        Seconds of each layer on its own, and what no placement can beat there; float64 [layers].
    solver, options, seed
        How it was made.
    wall_s
        Seconds that solving took, without those in which kernels were compiled.
    inputs
        Digests and ids of everything it was made from: trace, origin, steps, requests, batches, cluster, model.
    notes
        What a reader must know.
    terms
        What was asked beside speed and what came of it: objective, constraints, windows, migration.
    """

    placement: Placement
    policy: str
    transport: str
    score_s: float
    bound_s: float
    layer_score_s: Array
    layer_bound_s: Array
    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    wall_s: float = 0.0
    inputs: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    terms: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = {"layers": self.placement.layers}
        seal(self, "layer_score_s", self.layer_score_s, np.float64, ("layers",), layers)
        seal(self, "layer_bound_s", self.layer_bound_s, np.float64, ("layers",), layers)
        for name in ("score_s", "bound_s", "wall_s"):
            value = getattr(self, name)
            if not np.isfinite(value) or value < 0:
                raise InputError(f"Plan.{name}: expected seconds, finite and not negative, got {value}")
        # a plan below its own bound would mean that one of the two is wrong; rounding aside
        if self.score_s < self.bound_s * (1 - 1e-9):
            raise InputError(f"Plan: score {self.score_s} s is below the bound {self.bound_s} s that nothing can beat")
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        object.__setattr__(self, "inputs", MappingProxyType(dict(self.inputs)))
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))
        object.__setattr__(self, "notes", tuple(self.notes))

    @property
    def gap(self) -> float:
        """How far the score may be from the best possible one: ``score_s / bound_s - 1``."""
        return self.score_s / self.bound_s - 1 if self.bound_s > 0 else float("inf")

    @property
    def layer_gap(self) -> Array:
        """The same for each layer on its own, float64 [layers]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(self.layer_bound_s > 0, self.layer_score_s / self.layer_bound_s - 1, np.inf))

    @property
    def digest(self) -> str:
        """16 hex digits that name the answer, not how long it took."""
        return digest(self.placement.digest, self.policy, self.transport, self.score_s, self.bound_s, self.solver)

    def __repr__(self) -> str:
        return f"Plan({self.solver!r}, {self.placement!r}, score {self.score_s:.6g} s, gap {self.gap:.3g})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **{name: dict(getattr(self, name)) for name in ("options", "inputs", "terms")}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(
            {
                **state,
                "options": MappingProxyType(state["options"]),
                "inputs": MappingProxyType(state["inputs"]),
                "terms": MappingProxyType(state["terms"]),
            }
        )

    @property
    def cut(self) -> tuple[str, ...]:
        """The notes that say that the clock ended the search, or bought less of it than asked for."""
        return tuple(note for note in self.notes if note.startswith("the deadline ") or "the clock cut" in note)

    @property
    def doubts(self) -> tuple[str, ...]:
        """The notes that tell how much of the plan is the search's, the clock's and chance."""
        return tuple(note for note in self.notes if note in self.cut or note.startswith("few to fit "))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        placement = self.placement
        return {
            "schema": SCHEMA,
            "made_by": f"moesim {VERSION}",
            "solver": self.solver,
            "policy": self.policy,
            "transport": self.transport,
            "score_s": self.score_s,
            "bound_s": self.bound_s,
            "gap": self.gap if np.isfinite(self.gap) else None,
            "options": dict(self.options),
            "seed": self.seed,
            "wall_s": self.wall_s,
            "inputs": dict(self.inputs),
            "terms": dict(self.terms),
            "notes": list(self.notes),
            "layer_score_s": self.layer_score_s.tolist(),
            "layer_bound_s": self.layer_bound_s.tolist(),
            "placement": {
                "num_experts": placement.num_experts,
                "layer_ids": list(placement.layer_ids) if placement.layer_ids is not None else None,
                "num_hidden_layers": placement.num_hidden_layers,
                **({"left_out": placement.left_out} if placement.left_out else {}),
                "experts": placement.experts.tolist(),
            },
        }

    def write(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically."""
        write_text(path, json.dumps(self.to_dict(), indent=None, separators=(", ", ": "), allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan file.

        Raises
        ------
        InputError
            If there is no such file.
        FormatError
            If it is not a plan of a known version, or does not hold a valid placement.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise FormatError(path, "", "expected a plan in JSON, found binary data") from None
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise FormatError(path, f"line {error.lineno}", f"expected a plan in JSON: {error.msg}") from None
        found = data.get("schema") if isinstance(data, dict) else None
        if found != SCHEMA:
            raise FormatError(
                path, "schema", f"expected {SCHEMA!r}, found {found!r}; write it anew with `moesim solve ... -o`"
            )
        try:
            file = _File.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise FormatError(path, place, f"{first['msg']}, found {str(first['input'])[:60]!r}") from None
        held = file.placement
        try:
            placement = Placement(
                np.array(held.experts, dtype=np.int64),
                held.num_experts,
                layer_ids=tuple(held.layer_ids) if held.layer_ids is not None else None,
                num_hidden_layers=held.num_hidden_layers,
                left_out=held.left_out,
            )
            return cls(
                placement=placement,
                policy=file.policy,
                transport=file.transport,
                score_s=file.score_s,
                bound_s=file.bound_s,
                layer_score_s=np.array(file.layer_score_s),
                layer_bound_s=np.array(file.layer_bound_s),
                solver=file.solver,
                options=file.options,
                seed=file.seed,
                wall_s=file.wall_s,
                inputs=file.inputs,
                notes=tuple(file.notes),
                terms=file.terms,
            )
        except (InputError, ValueError) as error:
            raise FormatError(path, "placement", str(error)) from None


class _Held(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    num_experts: int
    layer_ids: list[int] | None
    num_hidden_layers: int | None
    left_out: int = 0
    experts: list[list[list[int]]]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal["moesim-plan/1"] = Field(alias="schema")
    made_by: str
    solver: str
    policy: str
    transport: str
    score_s: float
    bound_s: float
    gap: float | None
    options: dict[str, Any]
    seed: int
    wall_s: float
    inputs: dict[str, Any]
    terms: dict[str, Any] = Field(default_factory=dict)
    notes: list[str]
    layer_score_s: list[float]
    layer_bound_s: list[float]
    placement: _Held
