"""A clock for deadlines, on which compilation takes no time: half a minute once after an installation."""

from __future__ import annotations

import threading
import time
from typing import Any

from numba.core import event


class _Compiling(event.Listener):  # type: ignore[misc]  # numba has no types
    """Seconds in which any thread compiled a kernel, waited for one, or read or wrote one on disk."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside, self._since = 0, 0.0
        # threads that wait for the compiler tell so without holding its lock
        self._lock = threading.Lock()

    def on_start(self, _event: Any) -> None:
        with self._lock:
            if not self._inside:
                self._since = time.monotonic()
            self._inside += 1

    def on_end(self, _event: Any) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self.seconds += time.monotonic() - self._since


_COMPILING = _Compiling()
event.register("numba:compiler_lock", _COMPILING)


def working_s() -> float:
    """Return seconds of a clock that leaves out those in which kernels were compiled in this process.

    A search that its own compilation cuts short would find nothing on the first day, and the same command something
    else on the second. The clock steps back when a compilation ends.
    """
    return time.monotonic() - _COMPILING.seconds
