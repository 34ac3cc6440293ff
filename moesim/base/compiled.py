"""How inner loops are compiled, and the random numbers that they draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile at first call, keep the machine code on disk and release the GIL."""
    result: Function = numba.njit(cache=True, nogil=True)(function)
    return result


def compiled_as_numpy(function: Function) -> Function:
    """Compile like :func:`compiled`, but division by zero is as in numpy: loops without that test vectorise."""
    result: Function = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    return result


def plain(number: int) -> int:
    """Return a constant to call compiled functions with: they are compiled anew for every ``1`` written as it is."""
    return cast("int", np.int64(number))


ZERO: Final = plain(0)
ONE: Final = plain(1)


@compiled
def overwrite(target: Any, source: Any) -> None:
    """Copy one matrix into another of its shape.

    ``target[:] = source`` compiles the text of an error about shapes into every loop that has it, which takes seconds;
    so do rows that are assigned or added up as a whole.
    """
    for row in range(source.shape[0]):
        for column in range(source.shape[1]):
            target[row, column] = source[row, column]


@compiled
def write_row(target: Any, row: int, source: Any) -> None:
    """Copy ``source`` into a row of the matrix ``target``, see :func:`overwrite`."""
    for column in range(len(source)):
        target[row, column] = source[column]


@compiled
def splitmix64(state: np.uint64) -> np.uint64:
    """Return the number that SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) draws in a state, before it moves on.

    The next state is this one plus 0x9E3779B97F4A7C15; of a counter it is a hash.
    """
    mixed = state + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
