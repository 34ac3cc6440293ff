"""Live capture: record what the routers of a running model or server decide.

The room is callable: ``with moesim.capture(model) as recorder: ...``, see `moesim.capture.hooks.capture`. Importing it
does not import torch; a capture does when it is made.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from moesim.capture.batcher import Batcher as Batcher
from moesim.capture.batcher import Request as Request
from moesim.capture.batcher import Work as Work
from moesim.capture.hooks import RoutingSink as RoutingSink
from moesim.capture.hooks import capture as capture
from moesim.capture.recorder import Recorder as Recorder

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["Batcher", "Recorder", "Request", "RoutingSink", "Work", "capture"]


class _Room(ModuleType):
    """A package that is also its main verb, so that ``moesim.capture`` is one thing however it was imported."""

    def __call__(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Recorder]:
        return capture(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
