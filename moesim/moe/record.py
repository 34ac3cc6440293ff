"""A trace of training: the routing of some steps, recorded while they run."""

from __future__ import annotations

import platform
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesim.base.errors import InputError
from moesim.capture import capture
from moesim.moe.run import Run
from moesim.moe.spec import MODEL_NAME, narrow, spec_of
from moesim.trace import TRAIN, Trace, TraceWriter


class StepRecorder:
    """Records every so-manieth step of a run into a trace file; a context manager.

    A row is a token: `request` is the number of its sequence over the whole run, `source` the process that held it (-1
    when there is one process), `step` the training step. The file appears when the block is left, even by an error.

    Parameters
    ----------
    path
        Trace file to write; only the first process writes.
    every
        Steps between two that are recorded.
    domains
        Names of the domains; row i of a batch belongs to domain i modulo their number.
    keep_weights
        Whether gate weights are recorded.
    """

    def __init__(
        self, path: str | Path, run: Run, *, every: int, domains: tuple[str, ...], keep_weights: bool = False
    ) -> None:
        if every < 1:
            raise InputError(f"training trace: record every {every} steps makes no sense; expected at least 1")
        self.path, self.run, self.every, self.domains, self.keep_weights = path, run, every, domains, keep_weights
        self.spec = spec_of(run.model.config)
        self.origin = {
            "captured_by": "moesim train",
            "model": MODEL_NAME,
            "router": run.model.config.router,
            "recipe": asdict(run.recipe),
            "every": every,
            "first_step": run.step,
            "processes": run.group.size,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": run.device.type,
            "synthetic": False,
        }
        self._stack = ExitStack()
        self._writer: TraceWriter | None = None

    def __enter__(self) -> StepRecorder:
        if self.run.group.rank == 0:
            self._writer = self._stack.enter_context(TraceWriter(self.path, self.spec, self.origin, self.domains))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        if self._writer is not None and self._writer.rows:
            narrow(self.path, self.run.model.config)

    def advance(self) -> dict[str, Any]:
        """Take a step of the run, recorded if it is one of those."""
        if self.run.step % self.every:
            return self.run.advance()
        step = self.run.step
        with capture(self.run.model, keep_weights=self.keep_weights) as recorder:
            metrics = self.run.advance()
            routes, weights = recorder.take()
        piece = self._piece(step, self._gather(routes, torch.int32), self._gather(weights, torch.float32))
        if self._writer is not None:
            self._writer.append(piece)
        return metrics

    def _gather(self, array: Any, dtype: torch.dtype) -> Any:
        if array is None or self.run.group.size == 1:
            return array
        # collectives know neither int16 nor, on every backend, float16
        moved = torch.from_numpy(array).to(self.run.device, dtype)
        return self.run.group.gather(moved).cpu().numpy().astype(array.dtype)

    def _piece(self, step: int, routes: Any, weights: Any) -> Trace:
        rows, length = self.run.recipe.rows, self.run.model.config.context
        row = np.repeat(np.arange(rows), length)
        size = self.run.group.size
        return Trace(
            self.spec,
            routes,
            weights,
            step=np.full(rows * length, step),
            request=step * rows + row,
            position=np.tile(np.arange(length), rows),
            source=row // (rows // size) if size > 1 else np.full(rows * length, -1),
            phase=np.full(rows * length, TRAIN),
            domain=row % len(self.domains),
            domains=self.domains,
            origin=self.origin,
        )
