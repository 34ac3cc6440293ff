"""The settings that every kind of point shares: a trace, a cluster, a placement; checked before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moesim.base.errors import InputError, UnknownName
from moesim.cluster import Cluster, Deployment
from moesim.costs import NETWORKS, TRANSPORTS
from moesim.placement import POLICIES
from moesim.simulate.serving import SCHEDULERS
from moesim.solve import SOLVERS
from moesim.spec import BF16, FP8_BLOCK, ModelSpec
from moesim.study.sweep.problems import first_problem
from moesim.study.windows import fewest_slots
from moesim.trace import PHASES, Trace

_BYTES = {"fp8": FP8_BLOCK, "bf16": BF16}
_GROUPED = ("set", "degrade", "solver_options", "format_options")
"""Tables whose entries may stand as keys of their own: ``"set.tier.rail.bandwidth"``."""


class Common(BaseModel):
    """Settings of a point; a key that is left out takes the default shown here."""

    model_config = ConfigDict(extra="forbid")

    trace: str
    format: str | None = None
    model: str | None = None
    format_options: dict[str, Any] = Field(default_factory=dict)
    topology: str
    set: dict[str, Any] = Field(default_factory=dict)
    without: list[str] = Field(default_factory=list)
    degrade: dict[str, float] = Field(default_factory=dict)
    ranks: int | None = None
    slots: int | str = "+1"
    solver: str = "moesim"
    solver_options: dict[str, Any] = Field(default_factory=dict)
    deadline_s: float = 3600.0
    policy: str = "nearest"
    transport: str | None = None
    network: str = "bottleneck"
    compute: str = "roofline"
    dims: str | None = None
    dispatch: str | float | None = None
    combine: str | float | None = None
    phase: str | None = None
    tokens_per_rank: int | None = None
    steps: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise UnknownName or InputError where a name or a number cannot be."""
        SOLVERS.get(self.solver)
        at_least(1, ranks=self.ranks, tokens_per_rank=self.tokens_per_rank, steps=self.steps)
        for registry, name in ((POLICIES, self.policy), (TRANSPORTS, self.transport), (NETWORKS, self.network)):
            if name is not None and name not in registry.names():
                raise UnknownName(registry.kind, name, registry.names())
        if self.phase is not None and self.phase not in PHASES:
            raise UnknownName("phase", self.phase, PHASES)
        spare = self.slots.removeprefix("+") if isinstance(self.slots, str) else str(self.slots)
        if not spare.isdecimal() or self.slots in (0, "0"):
            raise InputError(f'slots: expected 1 or more, or "+1" for one more than the fewest, got {self.slots!r}')
        for name in ("dispatch", "combine"):
            value = getattr(self, name)
            if isinstance(value, str) and value not in _BYTES:
                raise UnknownName(f"{name} format", value, _BYTES)

    def needs(self, folder: Path) -> dict[str, Callable[[], Any]]:
        """Return what is read from files: the trace and the cluster."""
        return {self.trace_key: lambda: self.read_trace(folder), self.cluster_key: lambda: self.read_cluster(folder)}

    @property
    def trace_key(self) -> str:
        """Name of the trace among what points share."""
        return _key("trace", self.trace, self.format, self.model, self.format_options)

    @property
    def cluster_key(self) -> str:
        """Name of the whole, unedited cluster among what points share."""
        return _key("topology", self.topology)

    def read_trace(self, folder: Path) -> Trace:
        """Read the trace; where it holds counts only, tokens are drawn."""
        from moesim.trace import draw_tokens
        from moesim.trace.formats import read_any

        options = self.format_options | ({} if self.model is None else {"model": self.model})
        return draw_tokens(read_any(folder / self.trace, self.format, **options))

    def read_cluster(self, folder: Path) -> Cluster:
        """Read the cluster: a preset by name, or a file."""
        file = folder / self.topology
        return Cluster.read(str(file) if file.is_file() else self.topology)

    def group(self, shared: Mapping[str, Any]) -> Cluster:
        """Return the expert-parallel group: the cluster, edited and cut."""
        cluster: Cluster = shared[self.cluster_key]
        if self.set or self.without or self.degrade:
            cluster = cluster.edit(self.set, tuple(self.without), self.degrade)
        return Deployment(size=self.ranks).restrict(cluster)

    def dimensions(self, trace: Trace) -> ModelSpec | None:
        """Return the model at whose dimensions routing is replayed, with the bytes of tokens under way."""
        wanted: dict[str, Any] = {
            f"{name}_bytes": float(_BYTES.get(value, value) if isinstance(value, str) else value)
            for name in ("dispatch", "combine")
            if (value := getattr(self, name)) is not None
        }
        if self.dims is None and not wanted:
            return None
        spec = trace.spec if self.dims is None else ModelSpec.find(self.dims)
        return dataclasses.replace(spec, **wanted)

    def slots_of(self, trace: Trace, group: Cluster) -> int:
        """Return the slots of a rank: as given, or so many more than the fewest that hold all experts."""
        if isinstance(self.slots, int):
            return self.slots
        more = int(self.slots.removeprefix("+"))
        return fewest_slots(trace.spec.experts, group.ranks) + more if self.slots.startswith("+") else more


def at_least(least: float, **given: float | None) -> None:
    """Check settings that must not be too small; None is any.

    Raises
    ------
    InputError
        If one is; the message names it.
    """
    for name, value in given.items():
        if value is not None and not value >= least:
            raise InputError(f"{name}: expected at least {least}, got {value}")


def check_fit(fit: float) -> None:
    """Check the fraction of a trace that plans are fitted on.

    Raises
    ------
    InputError
        If it leaves nothing for one of the two parts.
    """
    if not 0 < fit < 1:
        raise InputError(f"fit: expected a fraction between 0 and 1, got {fit}")


def check_load(scheduler: str, rate: float, requests: int | None) -> None:
    """Check the load of a serving run and who deals it out.

    Raises
    ------
    UnknownName
        If there is no such scheduler.
    InputError
        If no request would come.
    """
    if scheduler not in SCHEDULERS.names():
        raise UnknownName(SCHEDULERS.kind, scheduler, SCHEDULERS.names())
    at_least(1, requests=requests)
    if not rate > 0:
        raise InputError(f"rate: expected more than 0 requests a second, got {rate}")


Settings = TypeVar("Settings", bound=Common)


def parse(model: type[Settings], given: Mapping[str, Any]) -> Settings:
    """Return checked settings; keys with dots go into their tables.

    Raises
    ------
    UnknownName
        If there is no such setting.
    InputError
        If a value is of the wrong kind.
    """
    values: dict[str, Any] = {}
    for key, value in given.items():
        head, _, rest = key.partition(".")
        if rest and head in _GROUPED:
            values[head] = {**values.get(head, {}), rest: value}
        elif key not in model.model_fields:
            raise UnknownName("setting", key, [*model.model_fields])
        elif isinstance(value, Mapping):
            values[key] = {**values.get(key, {}), **value}
        else:
            values[key] = value
    try:
        settings = model.model_validate(values)
    except ValidationError as error:
        raise InputError(": ".join(first_problem(error, model))) from None
    settings.check()
    return settings


def _key(kind: str, *parts: object) -> str:
    return f"{kind}:" + "|".join("" if part is None else str(part) for part in parts)
