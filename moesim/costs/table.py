"""Expert compute from a measured kernel table: interpolated in tokens per expert and active experts.

The file is JSON::

    {"schema": 1, "kind": "moesim-kernel-table", "device": "H100-SXM", "dtype": "fp8", "hidden": 7168,
     "intermediate": 2048, "kernel": "triton grouped gemm", "provenance": {"driver": "...", "library": "..."},
     "rows": [{"tokens_per_expert": 16, "active_experts": 8, "seconds": 1.43e-4}, ...]}

Rows form a full grid. Between grid points the logarithm of the time is linear in the logarithms of both axes. A file
of ``"kind": "moesim-kernel-tables"`` holds several under ``"tables"``, one a shape and dtype of one device; a shape
that it lacks is predicted from those of the same dtype (`moesim.costs.transfer`), and the notes say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moesim.base.arrays import Array, digest
from moesim.base.errors import FormatError, InputError
from moesim.costs.constants import family
from moesim.costs.roofline import uses_fp8
from moesim.costs.transfer import Rows, TransferCompute, columns, fit, leave_out
from moesim.spec import BF16, FP8_BLOCK, ModelSpec

if TYPE_CHECKING:
    from moesim.cluster import Cluster

SCHEMA: Final = 1
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class KernelRow(_Strict):
    """One measurement: every active expert had ``tokens_per_expert`` tokens."""

    tokens_per_expert: Positive
    active_experts: Annotated[int, Field(ge=1)]
    seconds: Positive


class KernelTable(_Strict):
    """A kernel cost table as the file holds it."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["moesim-kernel-table"]
    device: Annotated[str, Field(min_length=1)]
    dtype: Literal["bf16", "fp16", "fp8", "fp4"]
    hidden: Annotated[int, Field(ge=1)]
    intermediate: Annotated[int, Field(ge=1)]
    kernel: str = ""
    provenance: dict[str, str]
    rows: Annotated[list[KernelRow], Field(min_length=1)]

    def grid(self) -> tuple[Array, Array, Array]:
        """Return (tokens per expert [M], active experts [A], seconds [M, A]), axes ascending.

        Raises
        ------
        InputError
            If a point of the grid is missing or given twice.
        """
        m = sorted({row.tokens_per_expert for row in self.rows})
        a = sorted({row.active_experts for row in self.rows})
        seconds = np.full((len(m), len(a)), np.nan)
        for row in self.rows:
            at = m.index(row.tokens_per_expert), a.index(row.active_experts)
            if not np.isnan(seconds[at]):
                raise InputError(
                    f"{row.tokens_per_expert:g} tokens per expert with {row.active_experts} active experts is given "
                    "twice; keep one row"
                )
            seconds[at] = row.seconds
        if np.isnan(seconds).any():
            i, j = np.argwhere(np.isnan(seconds))[0]
            raise InputError(
                f"expected a full grid, but {m[i]:g} tokens per expert with {a[j]} active experts is missing; "
                "measure it or leave that line of the grid out"
            )
        return np.array(m), np.array(a, np.float64), seconds


class KernelTables(_Strict):
    """Several kernel cost tables, as `moesim profile` writes them."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["moesim-kernel-tables"]
    processors: Annotated[int, Field(ge=1)] = 132
    tables: Annotated[list[KernelTable], Field(min_length=1)]


def read_table(path: str | Path) -> KernelTable:
    """Read and check a file of one kernel cost table.

    Raises
    ------
    FormatError
        Names the file, the place in it, what was expected and found.
    """
    held = read_tables(path)
    if len(held.tables) != 1:
        raise FormatError(path, "tables", f"expected one kernel cost table, found {len(held.tables)}")
    return held.tables[0]


def read_tables(path: str | Path) -> KernelTables:
    """Read and check a file of one kernel cost table or of several.

    Raises
    ------
    FormatError
        Names the file, the place in it, what was expected and found.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise FormatError(path, "", f"cannot be read: {reason}; give the path of a kernel cost table") from None
    several = '"moesim-kernel-tables"' in text
    try:
        if several:
            held = KernelTables.model_validate_json(text)
        else:
            one = KernelTable.model_validate_json(text)
            held = KernelTables.model_construct(
                schema_version=1, kind="moesim-kernel-tables", processors=132, tables=[one]
            )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        found = "" if first["type"] in ("missing", "json_invalid") else f", got {first['input']!r:.60}"
        raise FormatError(path, place, f"{first['msg'][:1].lower()}{first['msg'][1:]}{found}") from None
    seen = set[tuple[str, int, int]]()
    for number, table in enumerate(held.tables):
        place = f"tables.{number}.rows" if several else "rows"
        try:
            table.grid()
        except InputError as error:
            raise FormatError(path, place, str(error)) from None
        key = table.dtype, table.hidden, table.intermediate
        if key in seen or table.device != held.tables[0].device:
            raise FormatError(
                path, f"tables.{number}", "expected one device, and one table a shape and dtype; write the others apart"
            )
        seen.add(key)
    return held


@dataclass(frozen=True, eq=False)
class TableCompute:
    """A kernel table as a compute model."""

    tokens: Array
    active: Array
    log_seconds: Array
    sources: Mapping[str, str]
    notes: tuple[str, ...]
    digest: str

    def __call__(self, slot_tokens: Array, cluster: Cluster, spec: ModelSpec) -> Array:
        """Return the seconds of the routed experts [..., R] from tokens per slot [..., R, C].

        Slots of one rank differ in tokens and the table holds equal ones: each active slot takes its share, one part
        in the number of active experts, of the time at its own number of tokens.

        Raises
        ------
        InputError
            If a rank has more tokens per expert, or more active experts, than the table measured.
        """
        m = np.asarray(slot_tokens, np.float64)
        active = np.broadcast_to((m > 0).sum(axis=-1, keepdims=True), m.shape)
        busy = m > 0
        out = np.zeros(m.shape)
        out[busy] = self._interpolate(m[busy], active[busy].astype(np.float64)) / active[busy]
        return np.asarray(out.sum(axis=-1) / cluster.speed)

    def _interpolate(self, m: Array, active: Array) -> Array:
        for name, value, axis in (("tokens per expert", m, self.tokens), ("active experts", active, self.active)):
            if value.size and value.max() > axis[-1]:
                raise InputError(
                    f"kernel table: {value.max():g} {name} asked for, measured up to {axis[-1]:g}; extend the table or "
                    "use the compute model roofline"
                )
        # below the first point the kernel is bound by weights and launches: its time stays
        i, u = _place(m, self.tokens)
        j, v = _place(active, self.active)
        low = self.log_seconds[i, j] * (1 - v) + self.log_seconds[i, np.minimum(j + 1, len(self.active) - 1)] * v
        up = np.minimum(i + 1, len(self.tokens) - 1)
        high = self.log_seconds[up, j] * (1 - v) + self.log_seconds[up, np.minimum(j + 1, len(self.active) - 1)] * v
        return np.asarray(np.exp(low * (1 - u) + high * u))


def _place(value: Array, axis: Array) -> tuple[Array, Array]:
    """Return the grid cell of each value and how far into it, on a logarithmic axis; values below the first stay."""
    if len(axis) == 1:
        return np.zeros(len(value), np.int64), np.zeros(len(value))
    inside = np.clip(np.log(value), np.log(axis[0]), np.log(axis[-1]))
    cell = np.clip(np.searchsorted(np.log(axis), inside, side="right") - 1, 0, len(axis) - 2)
    width = np.log(axis[cell + 1]) - np.log(axis[cell])
    return cell, (inside - np.log(axis[cell])) / width


def _refuse_shape(path: str | Path, held: KernelTable, spec: ModelSpec) -> None:
    for name, value in (("hidden", spec.hidden), ("intermediate", spec.intermediate)):
        if getattr(held, name) != value:
            raise FormatError(
                path, name, f"expected {value} ({spec.name}), got {getattr(held, name)}; measure this shape"
            )


def rows_of(tables: Sequence[KernelTable]) -> Rows:
    """Return the rows of several tables as columns."""
    return columns(
        [
            (t.hidden, t.intermediate, [(r.tokens_per_expert, r.active_experts, r.seconds) for r in t.rows])
            for t in tables
        ]
    )


def _predicted(
    tables: Sequence[KernelTable], spec: ModelSpec, path: str | Path, processors: int, notes: tuple[str, ...]
) -> TransferCompute:
    rows = rows_of(tables)
    element = FP8_BLOCK if uses_fp8(spec) else BF16
    errors = leave_out(rows, element, processors)
    mean = sum(count * error for count, error, _ in errors.values()) / len(rows.seconds)
    shapes = ", ".join(f"{h} x {i}" for h, i in rows.shapes)
    note = (
        f"expert compute of {spec.name} ({spec.hidden} x {spec.intermediate}) was not measured: predicted from "
        f"{shapes} on {tables[0].device}; each of those, left out, is predicted with a mean error of {mean:.1%}"
    )
    made = ", ".join(f"{key} {value}" for key, value in sorted(tables[0].provenance.items()))
    return TransferCompute(
        fit(rows, element, processors), float(rows.tokens.max()), float(rows.active.max()),
        {"compute: kernel tables of other shapes": f"measured: {Path(path).name} ({made})"}, (note, *notes),
        digest(*(t.model_dump_json() for t in tables)),
    )  # fmt: skip


def table(spec: ModelSpec, cluster: Cluster, path: str | None = None) -> TableCompute | TransferCompute:
    """Build the compute model of a kernel table, or of several.

    Raises
    ------
    InputError
        If no path is given.
    FormatError
        If the file is not a kernel cost table, is of another device or dtype, or, where it holds fewer than two shapes
        of the dtype, of another shape.
    """
    if path is None:
        raise InputError("compute model table: give the path of a kernel cost table instead of its name")
    file = read_tables(path)
    dtypes = ("fp8",) if uses_fp8(spec) else ("bf16", "fp16")
    of_dtype = [one for one in file.tables if one.dtype in dtypes]
    held = next((one for one in of_dtype if (one.hidden, one.intermediate) == (spec.hidden, spec.intermediate)), None)
    nearest = held or (of_dtype or file.tables)[0]
    if held is None and (len(of_dtype) < 2 or not spec.gated):
        _refuse_shape(path, nearest, spec)
        raise FormatError(path, "dtype", f"expected {' or '.join(dtypes)} ({spec.name}), got {nearest.dtype!r}")
    others = sorted(
        {d for d in cluster.device if d != nearest.device and family(d) != (family(nearest.device) or None)}
    )
    if others:
        raise FormatError(path, "device", f"expected {others[0]} (cluster {cluster.name}), got {nearest.device!r}")
    wide: tuple[str, ...] = () if spec.weight_bytes >= 1 else (
        f"weights of {spec.name} are narrower than those the kernel was measured with ({nearest.dtype}): where their "
        "reads bind, the time is too long",
    )  # fmt: skip
    if not spec.gated:
        wide += (f"{spec.name} has no gate; kernels of the usual tables have one, and then the time is too long",)
    if held is None:
        return _predicted(of_dtype, spec, path, file.processors, wide)
    m, a, seconds = held.grid()
    made = ", ".join(f"{key} {value}" for key, value in sorted(held.provenance.items()))
    notes = (
        f"expert compute measured on {held.device}: {held.kernel or 'kernel not named'}; {m[0]:g} to {m[-1]:g} tokens "
        f"per expert, {a[0]:g} to {a[-1]:g} active experts; below the first point its time is held, beyond the last "
        "is an error",
        *wide,
    )
    sources = {"compute: kernel table": f"measured: {Path(path).name} ({made})"}
    return TableCompute(m, a, np.log(seconds), sources, notes, digest(held.model_dump_json()))
