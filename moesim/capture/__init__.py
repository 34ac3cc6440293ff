"""Live capture: record what the routers of a running model or server decide.

The room is callable: ``with moesim.capture(model) as recorder: ...``, see `moesim.capture.hooks.capture`. Importing it
does not import torch; a capture does when it is made.
"""

from __future__ import annotations

from moesim.base.rooms import make_callable
from moesim.capture.batcher import Batcher as Batcher
from moesim.capture.batcher import Request as Request
from moesim.capture.batcher import Work as Work
from moesim.capture.hooks import RoutingSink as RoutingSink
from moesim.capture.hooks import capture as capture
from moesim.capture.recorder import Recorder as Recorder

__all__ = ["Batcher", "Recorder", "Request", "RoutingSink", "Work", "capture"]

make_callable(__name__)
