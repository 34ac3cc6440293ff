"""Live capture: a hook that records what the routers of a running model decide, and a continuous batcher.

Importing this room does not import torch; `capture` does when it is called.
"""

from __future__ import annotations

from moesim.capture.batcher import Batcher as Batcher
from moesim.capture.batcher import Request as Request
from moesim.capture.batcher import Work as Work
from moesim.capture.hooks import Recorder as Recorder
from moesim.capture.hooks import RoutingSink as RoutingSink
from moesim.capture.hooks import capture as capture

__all__ = ["Batcher", "Recorder", "Request", "RoutingSink", "Work", "capture"]
