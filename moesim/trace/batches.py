"""The type Batches: steps ready to be dispatched."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.base.arrays import Array, Sealed, digest, seal
from moesim.base.errors import InputError
from moesim.trace.checks import need_routes
from moesim.trace.trace import PHASES, PREFILL, Trace


@dataclass(frozen=True, eq=False)
class Batches(Sealed):
    """Steps of a trace on a given number of ranks.

    Parameters
    ----------
    trace
        The trace whose rows are batched.
    token
        Row of the trace, int64 [batched], step after step.
    home
        Rank of each, int32 [batched], in 0..ranks-1.
    offsets
        Where each step begins in ``token``, int64 [steps + 1].
    phase
        Phase code of each step, uint8 [steps].
    ranks
        Size of the expert-parallel group, R.
    tokens_per_rank
        Tokens every rank holds in every step, None where steps are as recorded or differ by phase.
    notes
        What was done to the trace, for reports: ``"dropped: ..."``, ``"resampled: ..."``.
    resampled
        Whether tokens were regrouped against what was recorded: drawn more than once, or decode tokens of one
        request run in the same step.
    """

    trace: Trace
    token: Array
    home: Array
    offsets: Array
    phase: Array
    ranks: int
    tokens_per_rank: int | None = None
    notes: tuple[str, ...] = ()
    resampled: bool = False

    def __post_init__(self) -> None:
        need_routes(self.trace.routes, "Batches")
        if self.ranks < 1:
            raise InputError(f"Batches.ranks: expected at least 1, got {self.ranks}")
        token = seal(self, "token", self.token, np.int64, ("batched",))
        home = seal(self, "home", self.home, np.int32, ("batched",), {"batched": len(token)})
        phase = seal(self, "phase", self.phase, np.uint8, ("steps",))
        offsets = seal(self, "offsets", self.offsets, np.int64, ("steps + 1",), {"steps + 1": len(phase) + 1})
        if offsets[0] != 0 or offsets[-1] != len(token) or (np.diff(offsets) < 0).any():
            raise InputError(f"Batches.offsets: expected ascending numbers from 0 to {len(token)}")
        for name, array, stop in (
            ("token", token, self.trace.rows),
            ("home", home, self.ranks),
            ("phase", phase, len(PHASES)),
        ):
            if array.size and (array.min() < 0 or array.max() >= stop):
                raise InputError(f"Batches.{name}: values must lie in 0..{stop - 1}")

    def __len__(self) -> int:
        return len(self.phase)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Batches) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """16 hex digits that name the trace and how it was batched."""
        return digest(self.trace.digest, self.token, self.home, self.offsets, self.phase, self.ranks)

    def _rows(self, step: int) -> Array:
        return self.token[self.offsets[step] : self.offsets[step + 1]]

    def routes(self, step: int) -> Array:
        """Return the expert ids of one step's tokens, int16 [n, layers, top_k]."""
        return np.asarray(self.trace.routes[self._rows(step)])  # type: ignore[index]  # checked at birth

    def homes(self, step: int) -> Array:
        """Return the home ranks of one step's tokens, int32 [n]."""
        return self.home[self.offsets[step] : self.offsets[step + 1]]

    def positions(self, step: int) -> Array:
        """Return the positions of one step's tokens in their requests, int32 [n]."""
        return np.asarray(self.trace.position[self._rows(step)])

    def requests(self, step: int) -> Array:
        """Return the requests of one step's tokens, int32 [n]."""
        return np.asarray(self.trace.request[self._rows(step)])

    def answered(self, step: int) -> NDArray[np.bool_]:
        """Return which of one step's tokens are answered when served, and need the output head, bool [n].

        All but those of prompts: of these one of each request on each rank, whose chunk may end the prompt.
        """
        home = self.homes(step)
        if int(self.phase[step]) != PREFILL:
            return np.ones(len(home), bool)
        found = np.zeros(len(home), bool)
        chunk = home.astype(np.int64) << 32 | self.requests(step).astype(np.uint32)
        found[np.unique(chunk, return_index=True)[1]] = True
        return found

    def weights(self, step: int) -> Array | None:
        """Return the gate weights of one step's tokens, float16 [n, layers, top_k], None where not recorded."""
        found = self.trace.weights
        return None if found is None else np.asarray(found[self._rows(step)])

    def take(self, steps: slice) -> Batches:
        """Return a run of consecutive steps, e.g. ``take(slice(0, 4))``."""
        first, last, stride = steps.indices(len(self))
        if stride != 1:
            raise InputError(f"Batches.take: expected consecutive steps, got stride {stride}")
        last = max(first, last)
        rows = slice(int(self.offsets[first]), int(self.offsets[last]))
        offsets = self.offsets[first : last + 1] - self.offsets[first]
        return dataclasses.replace(
            self, token=self.token[rows], home=self.home[rows], offsets=offsets, phase=self.phase[first:last]
        )
