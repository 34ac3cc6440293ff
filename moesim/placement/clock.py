"""A clock for deadlines, on which compilation takes no time: half a minute once after an installation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from numba.core import event

_LONG_S: Final = 5.0
"""Seconds of compiling after which it is worth a word; reading kernels from disk takes less."""


class _Compiling(event.Listener):  # type: ignore[misc]  # numba has no types
    """Seconds in which any thread compiled a kernel, waited for one, or read or wrote one on disk."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tell: Callable[[], None] | None = None
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
            now = time.monotonic()
            long = self.seconds + now - self._since > _LONG_S
            if not self._inside:
                self.seconds += now - self._since
            tell, self.tell = (self.tell, None) if long else (None, self.tell)
        if tell is not None:
            tell()


_COMPILING = _Compiling()
event.register("numba:compiler_lock", _COMPILING)


def working_s() -> float:
    """Return seconds of a clock that leaves out those in which kernels were compiled in this process.

    A search that its own compilation cuts short would find nothing on the first day, and the same command something
    else on the second. The clock steps back when a compilation ends.
    """
    return time.monotonic() - _COMPILING.seconds


@contextmanager
def when_compiling(tell: Callable[[], None]) -> Iterator[None]:
    """Have ``tell`` called, once, when this process has compiled for seconds: whoever waits shall know for what."""
    _COMPILING.tell = tell
    try:
        yield
    finally:
        _COMPILING.tell = None
