"""A clock for deadlines, on which compilation takes no time: half a minute once after an installation."""

from __future__ import annotations

import time
from typing import Final

from numba.core import event

_COMPILING: Final = event.TimingListener()
event.register("numba:compile", _COMPILING)


def working_s() -> float:
    """Return seconds of a clock that leaves out those in which kernels were compiled in this process.

    A search that its own compilation cuts short would find nothing on the first day, and the same command something
    else on the second. The clock steps back when a compilation ends.
    """
    return time.monotonic() - (float(_COMPILING.duration) if _COMPILING.done else 0.0)
