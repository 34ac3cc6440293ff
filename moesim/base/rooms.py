"""A room that is also its main verb: ``moesim.solve`` is the package and the function, however it was imported."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


class Room(ModuleType):
    """A package that can be called; the call goes to the function in it that has its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._verb()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._verb())

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return importlib.import_module, (self.__name__,)

    def _verb(self) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])


def make_callable(name: str) -> None:
    """Let the package ``name``, which is being imported, be called as the function of the same name in it."""
    sys.modules[name].__class__ = Room
