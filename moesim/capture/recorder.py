"""The recorder: collects what the routers of a model decide, pass by pass, until it is taken or written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from moesim.spec import ModelSpec
    from moesim.trace import Trace

FLUSH_TOKENS: Final = 65_536
"""Tokens that a recorder with a sink holds before it hands them on."""


class Taken(NamedTuple):
    """What one tower saw: step, sequence and position of each token [tokens], experts and weights [tokens, L, K]."""

    step: NDArray[np.int64]
    sequence: NDArray[np.int64]
    position: NDArray[np.int64]
    experts: NDArray[np.int16]
    weights: NDArray[np.float16] | None


@dataclass
class _Seat:
    """What one layer has reported: how many passes it saw, and what is kept of them."""

    experts: int
    seen: int = 0
    picks: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(len(part) for part in self.picks)


@dataclass
class _Tower:
    """Layers that see the same tokens; rows of the model's layers from `first` on."""

    first: int
    seats: list[_Seat]
    # of each pass that is kept: its number, sequences and their length
    passes: list[tuple[int, int, int]] = field(default_factory=list)
    sequences: int = 0


class Recorder:
    """Collects the routing of forward passes until it is taken.

    Parameters
    ----------
    towers
        Experts of each MoE layer (0 where not known), [towers][layers]. Every layer of a tower must report every pass.
    keep_weights
        Whether gate weights are kept beside expert ids.
    every
        Record one forward pass in so many.
    describe
        Returns the model, given the picks of a token and its width; asked when there is a trace to make.
    phase, origin
        Of the traces that are made: ``"train"``, ``"prefill"`` or ``"decode"``, and who captured what.
    """

    def __init__(
        self,
        towers: Sequence[Sequence[int]],
        keep_weights: bool = True,
        *,
        every: int = 1,
        describe: Callable[[int], ModelSpec] | None = None,
        phase: str = "train",
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        if every < 1:
            raise InputError(f"capture: every must be at least 1, got {every}")
        self.keep_weights, self.every, self.phase, self.origin = keep_weights, every, phase, dict(origin or {})
        self.layers = sum(len(tower) for tower in towers)
        self._towers: list[_Tower] = []
        self._home: list[tuple[_Tower, _Seat]] = []
        for experts in towers:
            tower = _Tower(len(self._home), [_Seat(number) for number in experts])
            self._towers.append(tower)
            self._home += [(tower, seat) for seat in tower.seats]
        self._describe = describe
        self._sink: Callable[[Trace], None] | None = None
        self._shape = (0, 0)

    def record(self, layer: int, experts: Tensor, weights: Tensor | None) -> None:
        """Keep the experts and gate weights [tokens, top_k] of one layer in one forward pass.

        Copies to the host wait until the recorder is emptied, so that a GPU is not stalled here.
        """
        if _recomputing():
            return
        tower, seat = self._home[layer]
        leads = seat is tower.seats[0]
        if leads and self._sink is not None and seat.tokens >= FLUSH_TOKENS:
            self.flush()
        number = seat.seen
        seat.seen += 1
        if number % self.every:
            return
        if leads:
            sequences, length = self._shape
            if sequences * length != len(experts):
                sequences, length = 1, len(experts)
            tower.passes.append((number, sequences, length))
        # narrowed at once: a copy that a block which changes its arguments cannot change, in a quarter of the memory
        seat.picks.append(experts.detach().short())
        if self.keep_weights and weights is not None:
            seat.weights.append(weights.detach().half())

    def take(self) -> tuple[NDArray[np.int16], NDArray[np.float16] | None]:
        """Return and forget all that was recorded since the last call.

        Returns
        -------
        Expert ids int16 [tokens, layers, top_k], and gate weights float16 of the same shape (None if not kept),
        tokens in the order in which the forward passes saw them; -1 in layers that a token does not pass.

        Raises
        ------
        InputError
            If layers did not all see the same tokens, or nothing was recorded.
        """
        parts = self.drain()
        if not parts:
            raise InputError(f"capture: {self._silence()}")
        weights = [part.weights for part in parts if part.weights is not None]
        return np.concatenate([part.experts for part in parts]), np.concatenate(weights) if weights else None

    def drain(self) -> list[Taken]:
        """Return and forget what was recorded, by tower; empty where nothing was. Raises as `take` does."""
        widths = [part.shape[1] for _, seat in self._home for part in seat.picks]
        for tower in self._towers:
            tokens = [seat.tokens for seat in tower.seats]
            if len(set(tokens)) > 1:
                raise InputError(f"capture: the MoE layers recorded {tokens} tokens; each must record every token once")
        return [self._empty(tower, max(widths)) for tower in self._towers if tower.seats[0].picks]

    def trace(self, spec: ModelSpec | None = None, **columns: Any) -> Trace:
        """Return and forget what was recorded, as a trace: a step is a forward pass, a request a sequence of it.

        Parameters
        ----------
        spec
            The model, where it cannot be told from the module.
        columns
            Columns of `Trace` instead of the recorder's: ``request``, ``position``, ``phase``, ``domain``, ...

        Raises
        ------
        InputError
            If nothing was recorded, or it does not fit the model.
        """
        return self._trace(self.drain(), spec, columns)

    def spec(self, top_k: int) -> ModelSpec:
        """Return the model that is recorded, given the picks of a token."""
        if self._describe is None:
            raise InputError("capture: the model cannot be told from the module; give spec=")
        return self._describe(top_k)

    def flush(self) -> None:
        """Hand what was recorded to the sink, where there is one; only between forward passes."""
        if self._sink is not None and (parts := self.drain()):
            self._sink(self._trace(parts, None, {}))

    def send(self, sink: Callable[[Trace], None]) -> None:
        """Hand traces to a sink from now on, as soon as there are `FLUSH_TOKENS` tokens, and at each `flush`."""
        self._sink = sink

    def finish(self) -> None:
        """Hand the rest to the sink, without a pass that was cut short."""
        for tower in self._towers:
            whole = min(len(seat.picks) for seat in tower.seats)
            del tower.passes[whole:]
            for seat in tower.seats:
                del seat.picks[whole:], seat.weights[whole:]
        self.flush()

    def note_shape(self, sequences: int, length: int) -> None:
        """Take note of how many sequences of which length the next forward pass sees."""
        self._shape = (sequences, length)

    def _trace(self, parts: list[Taken], spec: ModelSpec | None, columns: Mapping[str, Any]) -> Trace:
        from moesim.trace import PHASES, Trace

        if not parts:
            raise InputError(f"capture: {self._silence()}")
        spec = spec or self.spec(parts[0].experts.shape[2])
        joined = {
            "step": np.concatenate([part.step for part in parts]),
            "request": np.concatenate([part.sequence for part in parts]),
            "position": np.concatenate([part.position for part in parts]),
        }
        rows = len(joined["step"])
        joined["phase"] = np.full(rows, PHASES.index(self.phase))
        if (rank := _rank()) is not None:
            joined["source"] = np.full(rows, rank)
        weights = [part.weights for part in parts if part.weights is not None]
        return Trace(
            spec,
            np.concatenate([part.experts for part in parts]),
            np.concatenate(weights) if weights else None,
            **{"origin": self.origin, **joined, **columns},
        )

    def _empty(self, tower: _Tower, K: int) -> Taken:
        numbers, sequences, lengths = np.array(tower.passes, np.int64).reshape(-1, 3).T
        per_pass = sequences * lengths
        first = tower.sequences + np.cumsum(sequences) - sequences
        place = np.arange(per_pass.sum()) - np.repeat(np.cumsum(per_pass) - per_pass, per_pass)
        length = np.repeat(lengths, per_pass)
        rows = slice(tower.first, tower.first + len(tower.seats))
        experts = np.full((len(place), self.layers, K), -1, np.int16)
        found = _host([seat.picks for seat in tower.seats], K)
        limit = np.array([seat.experts or np.iinfo(np.int16).max for seat in tower.seats])[:, None]
        # ids from E on are no experts: identity experts, or tokens that a rank leaves out
        experts[:, rows] = np.where(found < limit, found, -1)
        weights = None
        if tower.seats[0].weights:
            weights = np.zeros(experts.shape, np.float16)
            weights[:, rows] = _host([seat.weights for seat in tower.seats], K)
        taken = Taken(
            np.repeat(numbers, per_pass), np.repeat(first, per_pass) + place // length, place % length, experts, weights
        )
        tower.sequences += int(sequences.sum())
        tower.passes.clear()
        for seat in tower.seats:
            seat.picks.clear()
            seat.weights.clear()
        return taken

    def _silence(self) -> str:
        seen = [seat.tokens for _, seat in self._home]
        return (
            f"the MoE layers recorded {seen} tokens; each must record every token once: run a forward pass "
            "inside the block, without CUDA graphs and without kernels that replace whole MoE blocks"
        )


def _host(layers: list[list[Tensor]], K: int) -> NDArray[Any]:
    """Return what layers reported, [tokens, layers, K]; missing picks are -1 (weights 0 where experts are)."""
    import torch

    joined = [torch.cat(parts) for parts in layers]
    if any(part.shape[1] < K for part in joined):
        fill = 0 if joined[0].is_floating_point() else -1
        joined = [torch.nn.functional.pad(part, (0, K - part.shape[1]), value=fill) for part in joined]
    if len({part.device for part in joined}) == 1:
        # one copy to the host for all layers
        return np.asarray(torch.stack(joined, dim=1).cpu().numpy())
    return np.stack([part.cpu().numpy() for part in joined], axis=1)


def _recomputing() -> bool:
    """Whether this forward pass is one of activation checkpointing, within a backward pass: seen already."""
    import torch

    return bool(torch._C._current_graph_task_id() != -1)


def _rank() -> int | None:
    import torch

    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return int(torch.distributed.get_rank()) if ready else None
