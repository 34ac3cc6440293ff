"""The type Trace: what a router decided, token by token or as counts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.base.arrays import Array, Sealed, digest, seal
from moesim.base.errors import InputError, UnknownName
from moesim.spec import ModelSpec
from moesim.trace import checks

PREFILL: Final = 0
DECODE: Final = 1
TRAIN: Final = 2
PHASES: Final = ("prefill", "decode", "train")
"""Names of the phase codes."""

_COLUMNS: Final = (
    ("step", np.int32),
    ("request", np.int32),
    ("position", np.int32),
    ("source", np.int32),
    ("phase", np.uint8),
    ("domain", np.int16),
)
_MOST_EXPERTS: Final = int(np.iinfo(np.int16).max)


@dataclass(frozen=True, eq=False)
class Trace(Sealed):
    """Routing of a model on real or synthetic traffic.

    One row is a token, or, in a trace that holds counts only, a recorded step. Columns that are not given take
    the defaults below. Two traces are equal when their digests and origins are.

    Parameters
    ----------
    spec
        The model; its L, E and K are those of the arrays.
    routes
        Logical expert ids int16 [tokens, layers, top_k], -1 = no expert (dropped, or not recorded); None in a
        trace that holds counts only.
    weights
        Gate weights float16 [tokens, layers, top_k], or None.
    step
        Step of each row, int32. Default: the request, as nothing is known of what ran together.
    request, position
        Request of each token and its position in it, int32. Defaults: one request, positions in row order.
    source
        Rank the token came from, int32, -1 = unknown (default).
    phase
        Phase code of each row, uint8, see `PHASES`. Default: prefill.
    domain, domains
        Domain code of each row, int16, and the names of the codes.
    origin
        Who captured it, from what, with which versions; ``synthetic`` says whether a generator made it.
    given_counts
        Picks int64 [steps, layers, experts] of a trace without routes, in ascending order of ``step``.

    Raises
    ------
    InputError
        If shapes disagree, an id is out of range or an expert occurs twice in one pick; the message names the
        token, the layer and the value.
    """

    spec: ModelSpec
    routes: Array | None = None
    weights: Array | None = None
    step: Array = None  # type: ignore[assignment]
    request: Array = None  # type: ignore[assignment]
    position: Array = None  # type: ignore[assignment]
    source: Array = None  # type: ignore[assignment]
    phase: Array = None  # type: ignore[assignment]
    domain: Array = None  # type: ignore[assignment]
    domains: tuple[str, ...] = ("unlabelled",)
    origin: Mapping[str, Any] = field(default_factory=dict)
    given_counts: Array | None = None

    def __post_init__(self) -> None:
        spec = self.spec
        if spec.experts > _MOST_EXPERTS:
            raise InputError(f"Trace: at most {_MOST_EXPERTS} experts fit int16 ids, {spec.name!r} has {spec.experts}")
        if (self.routes is None) == (self.given_counts is None):
            raise InputError("Trace: expected either routes (one row a token) or given_counts (one row a step)")
        sizes = {"layers": spec.layers, "top_k": spec.top_k, "experts": spec.experts}
        if self.routes is not None:
            axes = ("tokens", "layers", "top_k")
            rows = seal(self, "routes", self.routes, np.int16, axes, sizes).shape[0]
            if self.weights is not None:
                with np.errstate(over="ignore"):
                    seal(self, "weights", self.weights, np.float16, axes, sizes | {"tokens": rows})
        elif self.weights is not None:
            raise InputError("Trace.weights: a trace of counts has no weights")
        else:
            axes = ("steps", "layers", "experts")
            counts: Any = self.given_counts
            rows = seal(self, "given_counts", counts, np.int64, axes, sizes).shape[0]
        self._seal_columns(rows)
        object.__setattr__(self, "domains", tuple(str(name) for name in self.domains))
        object.__setattr__(self, "origin", MappingProxyType(plain(self.origin)))
        self._check()

    def _seal_columns(self, rows: int) -> None:
        given: dict[str, Any] = {name: getattr(self, name) for name, _ in _COLUMNS}
        counted = self.routes is None
        if given["request"] is None:
            # a trace of counts knows nothing of requests
            given["request"] = np.full(rows, -1 if counted else 0)
        if given["step"] is None:
            given["step"] = np.arange(rows) if counted else given["request"]
        if given["position"] is None:
            given["position"] = _place_in_run(np.asarray(given["request"]))
        for name, default in (("source", -1), ("phase", PREFILL), ("domain", 0)):
            if given[name] is None:
                given[name] = np.full(rows, default)
        for name, dtype in _COLUMNS:
            seal(self, name, given[name], dtype, ("rows",), {"rows": rows})

    def _check(self) -> None:
        if self.routes is not None:
            checks.check_routes(self.routes, self.spec)
        if self.weights is not None:
            checks.check_weights(self.weights)
        if self.given_counts is not None:
            checks.check_counts(self.given_counts, self.step)
        checks.check_range("step", self.step, 0)
        checks.check_range("position", self.position, 0)
        checks.check_range("source", self.source, -1)
        checks.check_range("phase", self.phase, 0, len(PHASES))
        checks.check_range("domain", self.domain, 0, len(self.domains))
        if len(set(self.domains)) != len(self.domains):
            raise InputError(f"Trace.domains: names must be unique, got {self.domains}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        return self.digest == other.digest and dict(self.origin) == dict(other.origin)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        what = f"{self.tokens} tokens" if self.routes is not None else "counts only"
        return f"Trace({self.spec.name!r}, {what}, {self.steps} steps, {self.layers} layers, digest {self.digest})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "origin": dict(self.origin)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "origin": MappingProxyType(state["origin"])})

    @property
    def rows(self) -> int:
        """Number of rows: tokens, or steps where there are only counts."""
        return len(self.step)

    @property
    def layers(self) -> int:
        """Number of MoE layers, L."""
        return self.spec.layers

    @cached_property
    def tokens(self) -> int:
        """Number of tokens; of a trace of counts, the picks of its fullest layer divided by top_k."""
        if self.given_counts is None:
            return self.rows
        return int(self.loads.sum(axis=-1).max(initial=0)) // self.spec.top_k

    @cached_property
    def step_ids(self) -> Array:
        """The steps that occur, ascending, int32 [steps]; the first axis of `counts`."""
        return np.unique(self.step)

    @property
    def steps(self) -> int:
        """Number of steps that occur."""
        return len(self.step_ids)

    @cached_property
    def has_steps(self) -> bool:
        """Whether it was recorded what ran together: some step holds more than one request."""
        if self.routes is None:
            return False
        pairs = np.unique(self.step.astype(np.int64) << 32 | self.request.astype(np.uint32))
        return len(pairs) > self.steps

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Picks of each expert, int64 [steps, layers, experts]; given, or derived from the routes."""
        if self.given_counts is not None:
            return self.given_counts
        return self.loads_by(np.searchsorted(self.step_ids, self.step), self.steps)

    @cached_property
    def loads(self) -> NDArray[np.int64]:
        """Picks of each expert over the whole trace, int64 [layers, experts]."""
        return np.asarray(self.loads_by(np.zeros(self.rows, np.int64), 1)[0])

    def domain_loads(self) -> NDArray[np.int64]:
        """Return the picks of each expert by domain, int64 [domains, layers, experts]."""
        return self.loads_by(self.domain, len(self.domains))

    def loads_by(self, group: ArrayLike, groups: int) -> NDArray[np.int64]:
        """Return the picks of each expert by group of rows, int64 [groups, layers, experts].

        Parameters
        ----------
        group
            Group of each row, [rows], in 0..groups-1.
        """
        index = np.asarray(group, np.int64)
        if index.shape != (self.rows,) or (index.size and (index.min() < 0 or index.max() >= groups)):
            raise InputError(f"Trace.loads_by: expected a group in 0..{groups - 1} for each row ({self.rows})")
        loads = np.zeros((groups, self.layers, self.spec.experts), np.int64)
        if self.given_counts is not None:
            np.add.at(loads, index, self.given_counts)
        elif self.routes is not None:
            from moesim.trace.kernels import count_picks

            loads = count_picks(self.routes, index, groups, self.spec.experts)
        loads.flags.writeable = False
        return loads

    @cached_property
    def digest(self) -> str:
        """16 hex digits that name the routing: spec, routes, weights, counts and columns, not the origin."""
        columns = [getattr(self, name) for name, _ in _COLUMNS]
        return digest(self.spec, self.routes, self.weights, self.given_counts, *columns, self.domains)

    @property
    def origin_digest(self) -> str:
        """16 hex digits that all parts of one recording share: model and origin."""
        return digest(self.spec.to_dict(), dict(self.origin))

    def select(self, rows: ArrayLike) -> Trace:
        """Return the trace of some rows, in the order given.

        Parameters
        ----------
        rows
            Boolean mask [rows] or row numbers.
        """
        index = np.asarray(rows)
        if index.dtype == bool and index.shape != (self.rows,):
            raise InputError(f"Trace.select: expected a mask of {self.rows}, one value a row, got shape {index.shape}")
        if index.dtype != bool and index.size and (index.min() < 0 or index.max() >= self.rows):
            raise InputError(f"Trace.select: row numbers must lie in 0..{self.rows - 1}")
        names = ["routes", "weights", "given_counts", *(name for name, _ in _COLUMNS)]
        index = index if index.size else index.astype(np.int64)
        parts: dict[str, Any] = {name: _take(getattr(self, name), index) for name in names}
        return dataclasses.replace(self, **parts)

    def window(self, first_step: int, last_step: int) -> Trace:
        """Return the rows whose step lies in ``first_step <= step < last_step``."""
        return self.select((self.step >= first_step) & (self.step < last_step))

    def of_domain(self, *names: str) -> Trace:
        """Return the rows of some domains.

        Raises
        ------
        UnknownName
            If the trace has no such domain.
        """
        for name in names:
            if name not in self.domains:
                raise UnknownName("domain of this trace", name, self.domains)
        return self.select(np.isin(self.domain, [self.domains.index(name) for name in names]))

    def of_phase(self, name: str) -> Trace:
        """Return the rows of one phase: ``"prefill"``, ``"decode"`` or ``"train"``."""
        if name not in PHASES:
            raise UnknownName("phase", name, PHASES)
        return self.select(self.phase == PHASES.index(name))

    def of_layers(self, layers: Sequence[int]) -> Trace:
        """Return the trace of some MoE layers (ordinals in 0..L-1), with a spec that has only those."""
        spec = layer_subset(self.spec, layers)
        index = np.asarray(layers, np.int64)
        parts: dict[str, Any] = {
            name: None if (array := getattr(self, name)) is None else array[:, index]
            for name in ("routes", "weights", "given_counts")
        }
        return dataclasses.replace(self, spec=spec, **parts)

    def split(self, fraction: float, by: str = "auto", seed: int = 0) -> tuple[Trace, Trace]:
        """Return two disjoint traces, one to fit on and one to judge on, neither of them empty.

        Parameters
        ----------
        fraction
            Share of the rows in the first one, as nearly as whole steps or requests allow.
        by
            ``"step"``: the first steps against the later ones. ``"request"``, ``"domain"``: a seeded shuffle of the
            requests or domains. ``"auto"``: step where steps were recorded (or there are only counts), otherwise
            request.
        seed
            For the shuffle.

        Raises
        ------
        InputError
            If the fraction is not between 0 and 1 or there is only one step, request or domain to split.
        """
        if not 0 < fraction < 1:
            raise InputError(f"split: the fraction must lie between 0 and 1, got {fraction}")
        checks.check_seed(seed)
        ways = ("auto", "step", "request", "domain")
        if by not in ways:
            raise UnknownName("way to split", by, ways)
        if by == "auto":
            by = "step" if self.has_steps or self.routes is None else "request"
        if by == "request" and self.routes is None:
            raise InputError("split: a trace of counts knows no requests; split it by step")
        column = {"step": self.step, "request": self.request, "domain": self.domain}[by]
        keys, group, sizes = np.unique(column, return_inverse=True, return_counts=True)
        if len(keys) < 2:
            raise InputError(
                f"split: needs at least two {by}s, the trace has {len(keys)}; give a longer trace, or one to judge on"
                + (", or say where its requests begin when importing it" if by == "request" else "")
            )
        order = np.arange(len(keys)) if by == "step" else np.random.default_rng(seed).permutation(len(keys))
        filled = np.cumsum(sizes[order])
        # the cut nearest to the wanted number of rows, with something left on both sides
        cut = int(np.argmin(np.abs(filled[:-1] - fraction * self.rows))) + 1
        first = np.isin(np.arange(len(keys)), order[:cut])
        return self.select(first[group]), self.select(~first[group])

    @classmethod
    def read(cls, path: str | Path, layers: Sequence[int] | None = None) -> Trace:
        """Read a trace file (Parquet), or only some MoE layers of it.

        Raises
        ------
        FormatError
            If the file is not a complete trace file of this schema.
        """
        from moesim.trace import parquet

        return parquet.read(path, layers=layers)

    def write(self, path: str | Path) -> None:
        """Write a trace file (Parquet), atomically."""
        from moesim.trace import parquet

        parquet.write(self, path)


def plain(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return an origin as a file would give it back: data that JSON can hold.

    Raises
    ------
    InputError
        If it holds anything else.
    """
    try:
        data: dict[str, Any] = json.loads(json.dumps(dict(origin), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"Trace.origin: expected plain data that JSON can hold: {error}") from None
    return data


def layer_subset(spec: ModelSpec, layers: Sequence[int]) -> ModelSpec:
    """Return the spec of some MoE layers (ordinals in 0..L-1, ascending)."""
    chosen = list(layers)
    if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= spec.layers:
        raise InputError(f"layers: expected ascending MoE layer numbers in 0..{spec.layers - 1}, got {chosen}")
    return spec.only(chosen)


def _take(array: Array | None, index: Array) -> Array | None:
    if array is None:
        return None
    part = np.asarray(array[index])
    part.flags.writeable = False  # ours alone: spares seal() a copy
    return part


def _place_in_run(request: Array) -> Array:
    """Return how many earlier rows have the same request, int64 [rows]."""
    order = np.argsort(request, kind="stable")
    ordered = request[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, len(ordered)])
    place = np.empty(len(request), np.int64)
    place[order] = np.arange(len(request)) - np.repeat(starts, lengths)
    return place
