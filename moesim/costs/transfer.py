"""Expert compute of a shape nobody measured, from kernel tables of other shapes on the same device.

A roofline with tiles, whose few constants are fitted to the measured rows, gives the trend; what the rows differ from
it by is carried over from the rows nearest in shape, tokens and experts. How far that can be trusted is measured the
same way: each shape is left out in turn and predicted from the others (`leave_out`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.optimize import least_squares

from moesim.base.arrays import Array
from moesim.base.errors import InputError

if TYPE_CHECKING:
    from moesim.cluster import Cluster
    from moesim.spec import ModelSpec

_HEIGHTS: Final = (16.0, 32.0, 64.0, 128.0)
_COLUMNS: Final = 128.0
_DEPTH: Final = 64.0
_START: Final = np.log(np.array([4e14, 2.5e12, 2.0, 2e-5, 2e12, 2.0]))
"""First guess: FLOP/s inside of tiles, bytes/s of weights, blocks of depth a tile costs besides, launches in seconds,
bytes/s of rows around the products, exponent of overlap."""
_REACH: Final = np.array([1.0, 1.0, 1.5, 1.5])
"""How far in tokens, experts, width and intermediate (logarithms to base 2) a row still says something of another."""
_WEIGHT: Final = 0.15
"""Weight of the trend itself where no row is near."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Measured rows as columns, float64 [rows]: tokens per expert, active experts, hidden, intermediate, seconds."""

    tokens: Array
    active: Array
    hidden: Array
    intermediate: Array
    seconds: Array

    def part(self, chosen: Array) -> Rows:
        """Return some of the rows."""
        columns = (self.tokens, self.active, self.hidden, self.intermediate, self.seconds)
        return Rows(*(column[chosen] for column in columns))

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes (hidden, intermediate) in ascending order."""
        return sorted({(int(h), int(i)) for h, i in zip(self.hidden, self.intermediate, strict=True)})


@dataclass(frozen=True, eq=False)
class FittedRoofline:
    """A fitted roofline and the rows it was fitted to."""

    constants: Array
    rows: Rows
    residuals: Array
    weight_bytes: float
    processors: float

    def seconds(self, tokens: Array, active: Array, hidden: float, intermediate: float) -> Array:
        """Return predicted seconds of experts with equal tokens, arrays of one shape."""
        m, a = np.broadcast_arrays(np.asarray(tokens, np.float64), np.asarray(active, np.float64))
        asked = Rows(m.ravel(), a.ravel(), np.full(m.size, hidden), np.full(m.size, intermediate), np.ones(m.size))
        trend = _trend(self.constants, asked, self.weight_bytes, self.processors)
        far = _place(asked)[:, None, :] - _place(self.rows)[None, :, :]
        near = np.exp(-0.5 * ((far / _REACH) ** 2).sum(-1))
        correction = (near @ self.residuals) / (near.sum(-1) + _WEIGHT)
        return np.asarray(np.exp(trend + correction).reshape(m.shape))


def fit(rows: Rows, weight_bytes: float, processors: float) -> FittedRoofline:
    """Fit the constants by least squares of the logarithms, robust against single rows.

    Parameters
    ----------
    weight_bytes
        Bytes of an element of the weights.
    processors
        Multiprocessors of the device.

    Raises
    ------
    InputError
        If there are fewer rows than constants.
    """
    if len(rows.seconds) < len(_START):
        raise InputError(f"kernel tables: {len(rows.seconds)} rows are too few to predict other shapes from")
    log = np.log(rows.seconds)

    def wrong(constants: Array) -> Array:
        # a weak pull towards the guess holds constants that the rows do not decide
        apart: Array = _trend(constants, rows, weight_bytes, processors) - log
        held: Array = np.concatenate([apart, 0.01 * (constants - _START)])
        return held

    found = least_squares(wrong, _START, loss="soft_l1", f_scale=0.1).x
    return FittedRoofline(found, rows, log - _trend(found, rows, weight_bytes, processors), weight_bytes, processors)


def leave_out(rows: Rows, weight_bytes: float, processors: float) -> dict[tuple[int, int], tuple[int, float, float]]:
    """Predict each shape from the others; returns rows, mean absolute and mean relative error of each shape."""
    result = {}
    for shape in rows.shapes:
        own = (rows.hidden == shape[0]) & (rows.intermediate == shape[1])
        if own.all():
            raise InputError("kernel tables: one shape alone cannot be predicted from others; measure a second one")
        model, asked = fit(rows.part(~own), weight_bytes, processors), rows.part(own)
        error = model.seconds(asked.tokens, asked.active, *shape) / asked.seconds - 1
        result[shape] = int(own.sum()), float(np.abs(error).mean()), float(error.mean())
    return result


def _place(rows: Rows) -> Array:
    return np.asarray(np.log2(np.stack([rows.tokens, rows.active, rows.hidden, rows.intermediate], axis=-1)))


def _trend(constants: Array, rows: Rows, weight_bytes: float, processors: float) -> Array:
    """Return the logarithm of the seconds by the roofline with tiles."""
    flops, memory, extra, launch, copy, power = np.exp(constants)
    power = 1.0 + power
    picks = rows.tokens * rows.active
    total = launch + picks * (4 * rows.hidden + 2 * rows.intermediate) * 2.0 / copy
    for wide, deep in ((2 * rows.intermediate, rows.hidden), (rows.hidden, rows.intermediate)):
        blocks = np.ceil(deep / _DEPTH) + extra
        best = np.full(picks.shape, np.inf)
        for height in _HEIGHTS:
            tiles = rows.active * np.ceil(rows.tokens / height) * np.ceil(wide / _COLUMNS)
            waves = np.maximum(np.ceil(tiles / processors), 1.0)
            # the tensor cores work on 64 rows at once
            work = 2.0 * max(height, 64.0) * _COLUMNS * _DEPTH * blocks
            best = np.minimum(best, waves * work * processors / flops)
        moved = rows.active * wide * deep * weight_bytes + picks * (wide + deep) * 2.0
        longer, shorter = np.maximum(best, moved / memory), np.minimum(best, moved / memory)
        total = total + longer * (1.0 + (shorter / longer) ** power) ** (1 / power)
    return np.asarray(np.log(total))


@dataclass(frozen=True, eq=False)
class TransferCompute:
    """A fitted roofline as a compute model; slots of one rank are treated as those of a table."""

    model: FittedRoofline
    most_tokens: float
    most_active: float
    sources: Mapping[str, str]
    notes: tuple[str, ...]
    digest: str

    def __call__(self, slot_tokens: Array, cluster: Cluster, spec: ModelSpec) -> Array:
        """Return the seconds of the routed experts [..., R] from tokens per slot [..., R, C].

        Raises
        ------
        InputError
            If a rank has more tokens per expert, or more active experts, than any table measured.
        """
        m = np.asarray(slot_tokens, np.float64)
        busy = m > 0
        active = np.broadcast_to(busy.sum(axis=-1, keepdims=True), m.shape).astype(np.float64)
        values = (("tokens per expert", m, self.most_tokens), ("active experts", active, self.most_active))
        for name, value, most in values:
            if value.size and value.max() > most:
                raise InputError(
                    f"kernel tables: {value.max():g} {name} asked for, measured up to {most:g}; extend the tables or "
                    "use the compute model roofline"
                )
        pairs, back = np.unique(np.stack([m[busy], active[busy]], axis=-1), axis=0, return_inverse=True)
        out = np.zeros(m.shape)
        if len(pairs):
            each = self.model.seconds(pairs[:, 0], pairs[:, 1], spec.hidden, spec.intermediate) / pairs[:, 1]
            out[busy] = each[back.ravel()]
        return np.asarray(out.sum(axis=-1) / cluster.speed)


def columns(tables: Sequence[tuple[int, int, Sequence[tuple[float, int, float]]]]) -> Rows:
    """Gather tables (hidden, intermediate, rows of tokens per expert, active experts, seconds) into columns."""
    flat = [(m, a, h, i, s) for h, i, rows in tables for m, a, s in rows]
    return Rows(*(np.array(column, np.float64) for column in zip(*flat, strict=True)))
