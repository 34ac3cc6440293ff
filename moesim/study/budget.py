"""One deadline that several searches share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from moesim.placement.clock import working_s
from moesim.solve.progress import Stop

_LEAST: Final = 0.1
"""Part of its share that a search has even where those before it left nothing."""
_REASON: Final = "cut by the deadline that all searches share"
"""What the plan of a search that was cut says of it."""


class Budget:
    """One deadline for all searches, compilation aside: an equal part each, less where those before took longer.

    What a search may do is bought by its equal part alone, so that answers depend on the clock only where it cuts.

    Parameters
    ----------
    seconds, runs
        The deadline, and how many searches share it.
    """

    def __init__(self, seconds: float, runs: int) -> None:
        self.share = seconds / runs
        self.left, self.runs = seconds, runs
        self.cut = 0

    @contextmanager
    def part(self) -> Iterator[Stop]:
        """Yield what says when the next search must stop, and why, and take what it took off what is left."""
        began = working_s()
        until = began + max(min(self.share, self.left / self.runs), self.share * _LEAST)
        stopped = False

        def stop() -> str:
            nonlocal stopped
            stopped = stopped or working_s() > until
            return _REASON if stopped else ""

        try:
            yield stop
        finally:
            self.left -= working_s() - began
            self.runs = max(self.runs - 1, 1)
            self.cut += stopped
