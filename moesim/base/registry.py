"""Plug-ins by name: a lazy table of built-ins plus an entry-point group for everybody else's.

A plug-in is a function (or a small module) behind a one-call Protocol. Built-in and third-party plug-ins
are registered the same way, as ``"package.module:attribute"``, and imported when first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from moesim.base.errors import InputError, UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """Plug-ins of one kind.

    Parameters
    ----------
    kind
        What the plug-ins are, for messages: ``"solver"``.
    builtin
        Name to ``"module:attribute"`` of the plug-ins that ship with the package.
    group
        Entry-point group in which other packages register theirs.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str], group: str) -> None:
        self.kind, self.group = kind, group
        self._builtin = dict(builtin)
        self._loaded: dict[str, T] = {}

    def _targets(self) -> dict[str, str]:
        found = {point.name: point.value for point in entry_points(group=self.group)}
        # a package that is installed beside this one may add names, never replace ours
        return found | self._builtin

    def names(self) -> list[str]:
        """Return every known name, built-ins first, then others in alphabetical order."""
        others = sorted(set(self._targets()) - set(self._builtin))
        return [*self._builtin, *others]

    def get(self, name: str) -> T:
        """Return the plug-in of that name.

        Raises
        ------
        UnknownName
            If there is none.
        InputError
            If a third-party plug-in cannot be imported.
        """
        if name not in self._loaded:
            target = self._targets().get(name)
            if target is None:
                raise UnknownName(self.kind, name, self.names())
            module, _, attribute = target.partition(":")
            try:
                plugin = importlib.import_module(module)
                self._loaded[name] = getattr(plugin, attribute) if attribute else plugin  # type: ignore[assignment]
            except (ImportError, AttributeError) as error:
                if name in self._builtin:
                    raise
                raise InputError(f"{self.kind} {name!r} ({target}) cannot be loaded: {error}") from error
        return self._loaded[name]
