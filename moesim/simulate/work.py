"""Work: what one step has to do, as plain arrays; Timeline: when every rank did it.

The engines read a Work and return a Timeline; they know nothing of traces, placements or clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import InputError
from moesim.simulate.phases import ATTENTION, EXPERTS, PHASES, SHARED


@dataclass(frozen=True, eq=False)
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
        Whether the row has bytes for the column: home to expert, then expert to home. Given as flags
        ``[M, 2, L, R, R]``, kept with eight columns a byte ``[M, 2, L, R, R / 8]`` (:func:`pack`); ``senders()`` are
        the flags.
    everyone
        Whether a rank waits for a word (a count, a flag) of every rank in dispatch and in combine, also of those
        that send it nothing.
    taken
        Share ``[M, 2, L]`` of a rank's compute that an exchange takes while it runs; it counts in schedules that
        let batches overlap.
    """

    attention_s: Array
    shared_s: Array
    experts_s: Array
    arrive_s: Array
    own_s: Array
    word_s: Array
    sends: Array
    everyone: tuple[bool, bool] = (False, False)
    taken: Array | None = None

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
        if self.sends.dtype == np.bool_:
            if self.sends.shape[-1] != R:
                raise InputError(f"Work.sends: expected [..., ranks] with {R}, got {self.sends.shape[-1]}")
            object.__setattr__(self, "sends", pack(self.sends))
        bits = (*both, "ranks", "bytes of 8 ranks")
        seal(self, "sends", self._whole("sends"), np.uint8, bits, sizes | {bits[-1]: (R + 7) // 8})
        taken = np.zeros((M, 2, L)) if self.taken is None else self.taken
        seal(self, "taken", taken, np.float64, both, sizes)
        if not ((taken >= 0) & (taken < 1)).all():
            raise InputError("Work.taken: expected shares from 0 to below 1")
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

    def senders(self) -> Array:
        """Return the flags of ``sends`` ``[M, 2, L, R, R]``."""
        return np.unpackbits(self.sends, axis=-1, count=self.shape[2]).astype(bool)

    def compute_s(self, phase: int) -> Array:
        """Return the durations ``[M, L, R]`` of a phase that computes."""
        return {ATTENTION: self.attention_s, SHARED: self.shared_s, EXPERTS: self.experts_s}[phase]


def pack(flags: Array) -> Array:
    """Return flags ``[..., R]`` with eight of them a byte, the first in its highest bit."""
    return np.packbits(flags, axis=-1)


@dataclass(frozen=True, eq=False)
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
