"""Kinds of points: what the settings of a point mean, what all points share, and how one is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from moesim.base.registry import Registry

Row = dict[str, Any]
"""What a point found: column to number, text or None; seconds, bytes, tokens."""


RESERVED: Final = ("point", "status")
"""Columns of a table that are neither settings nor results."""


def hiding(row: Mapping[str, Any], settings: Iterable[str]) -> list[str]:
    """Return which results have the name of a setting, or of a column that every table has, and would hide it."""
    return sorted({*row} & {*settings, *RESERVED})


class Kind(Protocol):
    """A kind of point; a module with these two functions and two lists of columns.

    No result has the name of a setting: a sweep refuses it, as one would hide the other in its table.
    """

    COLUMNS: tuple[str, ...]
    """Results that tables for people show."""
    RESULTS: tuple[str, ...]
    """All results that a row may hold: a study that shows another is refused before any point runs."""

    def needs(self, settings: Mapping[str, Any], folder: Path) -> Mapping[str, Callable[[], Any]]:
        """Check the settings of a point and return what it needs from files: a key, and how it is read.

        Needs with the same key are read once, and shared by memory map or object store.

        Raises
        ------
        InputError
            If a setting is unknown or has a wrong value.
        """
        ...

    def run(self, settings: Mapping[str, Any], folder: Path, shared: Mapping[str, Any]) -> Row:
        """Return what a point finds; the same for the same settings and shared things, whoever runs it."""
        ...


KINDS: Final[Registry[Kind]] = Registry(
    "kind of study",
    {
        "step": "moesim.study.sweep.step",
        "moe-dense": "moesim.study.sweep.moe_dense",
        "rebalance": "moesim.study.sweep.rebalance",
        "failure": "moesim.study.sweep.failure",
        "serve": "moesim.study.sweep.serve",
    },
    "moesim.studies",
)
"""Kinds of points by name."""
