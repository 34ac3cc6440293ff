"""Read-only arrays with shapes checked at birth.

A frozen dataclass that holds arrays calls :func:`seal` in ``__post_init__`` and inherits :class:`Sealed`,
because the read-only flag of an array is lost on pickling (process pools, caches).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from moesim.base.errors import InputError

Array = NDArray[Any]


def seal(
    owner: object,
    field: str,
    value: ArrayLike,
    dtype: DTypeLike,
    axes: tuple[str, ...],
    sizes: Mapping[str, int] | None = None,
) -> Array:
    """Store ``value`` on a frozen dataclass as a read-only array and return it.

    Parameters
    ----------
    owner, field
        The frozen dataclass and the name of its field.
    dtype
        Wanted dtype; a conversion that would lose integer values raises.
    axes
        Names of the axes, used in messages, e.g. ``("layers", "ranks")``.
    sizes
        Required length per axis name, for the axes where it is known.

    Raises
    ------
    InputError
        If the number of axes or a length differs, or values do not fit the dtype.
    """
    name = f"{type(owner).__name__}.{field}"
    try:
        given = np.asarray(value)
        array = given.astype(dtype, copy=False)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name}: expected {np.dtype(dtype)} values, got {error}") from None
    if array.ndim != len(axes):
        raise InputError(f"{name}: expected axes [{', '.join(axes)}], got shape {array.shape}")
    for axis, length in zip(axes, array.shape, strict=True):
        wanted = (sizes or {}).get(axis)
        if wanted is not None and wanted != length:
            raise InputError(
                f"{name}: expected {wanted} {axis}, got {length} (axes [{', '.join(axes)}], shape {array.shape})"
            )
    if array is not given and np.issubdtype(array.dtype, np.integer) and not np.array_equal(array, given):
        raise InputError(f"{name}: values do not fit {array.dtype}")
    if array.flags.writeable:
        # copy only what somebody else could still write to
        array = array.copy() if np.shares_memory(array, given) else array
        array.flags.writeable = False
    object.__setattr__(owner, field, array)
    return array


class Sealed:
    """Mixin for frozen dataclasses: unpickled copies are sealed again."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
            object.__setattr__(self, key, value)


def digest(*parts: object) -> str:
    """Return 16 hex digits that name the content of arrays, dataclasses and plain values."""
    state = hashlib.sha256()
    for part in parts:
        _feed(state, part)
    return state.hexdigest()[:16]


def _feed(state: Any, part: object) -> None:
    if isinstance(part, np.ndarray):
        state.update(f"array{part.dtype.str}{part.shape}".encode())
        state.update(np.ascontiguousarray(part).data)
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        state.update(type(part).__name__.encode())
        for field in dataclasses.fields(part):
            if field.compare:
                _feed(state, field.name)
                _feed(state, getattr(part, field.name))
    elif isinstance(part, Mapping):
        state.update(f"map{len(part)}".encode())
        for key in sorted(part, key=repr):
            _feed(state, key)
            _feed(state, part[key])
    elif isinstance(part, (list, tuple)):
        state.update(f"seq{len(part)}".encode())
        for item in part:
            _feed(state, item)
    else:
        state.update(f"{type(part).__name__}:{part!r};".encode())
