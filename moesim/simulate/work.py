"""Work: what one step has to do, as plain arrays; Timeline: when every rank did it.

The engines read a Work and return a Timeline; they know nothing of traces, placements or clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import InputError
from moesim.simulate.phases import ATTENTION, EXPERTS, PHASES, SHARED


@dataclass(frozen=True)
class Work(Sealed):
    """Durations of one step.

    Symbols: M micro-batches, L MoE layers, R ranks. Axis ``exchange`` is dispatch, then combine.

    Parameters
    ----------
    attention_s, shared_s, experts_s
        Seconds of compute ``[M, L, R]``.
    arrive_s
        Seconds ``[M, 2, L, R]`` until a rank's last inbound byte, had all ranks started together.
    own_s
        Seconds ``[M, 2, L, R]`` until a rank's own outgoing bytes are there, were it alone on the network.
    word_s
        Seconds ``[M, 2, L]`` until an empty message is there.
    sends
        Whether the row has bytes for the column ``[M, 2, L, R, R]``: home to expert, then expert to home.
    everyone
        Whether a rank waits for a word (a count, a flag) of every rank in dispatch and in combine, also of those
        that send it nothing.
    """

    attention_s: Array
    shared_s: Array
    experts_s: Array
    arrive_s: Array
    own_s: Array
    word_s: Array
    sends: Array
    everyone: tuple[bool, bool] = (False, False)

    def __post_init__(self) -> None:
        axes = ("micro-batches", "layers", "ranks")
        seal(self, "experts_s", self.experts_s, np.float64, axes)
        M, L, R = self.experts_s.shape
        sizes = {"micro-batches": M, "layers": L, "ranks": R, "exchange": 2}
        for name in ("attention_s", "shared_s"):
            seal(self, name, self._whole(name), np.float64, axes, sizes)
        both = ("micro-batches", "exchange", "layers")
        for name in ("arrive_s", "own_s"):
            seal(self, name, self._whole(name), np.float64, (*both, "ranks"), sizes)
        seal(self, "word_s", self._whole("word_s"), np.float64, both, sizes)
        seal(self, "sends", self._whole("sends"), np.bool_, (*both, "ranks", "ranks"), sizes)
        for name in ("attention_s", "shared_s", "experts_s", "arrive_s", "own_s", "word_s"):
            values = getattr(self, name)
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise InputError(f"Work.{name}: expected finite seconds that are not negative")

    def _whole(self, name: str) -> Array:
        return np.ascontiguousarray(getattr(self, name))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Micro-batches, layers, ranks."""
        M, L, R = self.experts_s.shape
        return M, L, R

    def compute_s(self, phase: int) -> Array:
        """Return the durations ``[M, L, R]`` of a phase that computes."""
        return {ATTENTION: self.attention_s, SHARED: self.shared_s, EXPERTS: self.experts_s}[phase]


@dataclass(frozen=True)
class Timeline(Sealed):
    """When each rank began and ended each phase, seconds from the start of the step.

    Parameters
    ----------
    start_s, end_s
        ``[M, phases, L, R]``. An exchange begins on a rank when it has its bytes to send and the stream is free, and
        ends when its last inbound byte is there.
    previous
        What ran before on the same stream ``[M, phases, L]``: an index into the flattened axes, -1 for nothing.
    """

    start_s: Array
    end_s: Array
    previous: Array

    def __post_init__(self) -> None:
        axes = ("micro-batches", "phases", "layers")
        seal(self, "start_s", self.start_s, np.float64, (*axes, "ranks"))
        M, _, L, R = self.start_s.shape
        sizes = {"micro-batches": M, "phases": len(PHASES), "layers": L, "ranks": R}
        seal(self, "end_s", self.end_s, np.float64, (*axes, "ranks"), sizes)
        seal(self, "previous", self.previous, np.int64, axes, sizes)

    @property
    def step_s(self) -> float:
        """Seconds until the last rank is done."""
        return float(self.end_s[:, :, -1].max())


def empty_timeline(M: int, L: int, R: int) -> tuple[Array, Array, Array]:
    """Return writeable arrays for a Timeline."""
    P = len(PHASES)
    return np.zeros((M, P, L, R)), np.zeros((M, P, L, R)), np.full((M, P, L), -1, dtype=np.int64)
