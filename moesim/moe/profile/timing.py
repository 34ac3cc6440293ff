"""Timing: medians of repeated runs that find a cold cache, on a GPU between events around a graph's replay."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from moesim.moe.profile.device import Device

_WARM: Final = 3
_LEAST: Final = 5


@dataclass(frozen=True)
class Timed:
    """Median and spread (half the distance of the quartiles over the median) of `runs` runs, and how they ran."""

    seconds: float
    spread: float
    runs: int
    graph: bool


def event() -> Any:
    """Return a CUDA event that keeps the time."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class Clock:
    """Measures one device.

    Parameters
    ----------
    seconds
        About how long to measure one thing; at least five runs are taken.
    """

    def __init__(self, device: Device, seconds: float = 0.05, most: int = 50) -> None:
        self.device, self.seconds, self.most = device, seconds, most
        # twice the cache, so that nothing of an earlier run is left in it
        self._flush = torch.empty(2 * max(device.cache_bytes, 2**25), dtype=torch.int8, device=device.torch)

    def __call__(self, run: Callable[[], Any], *, graph: bool = True) -> Timed:
        """Time a function.

        Parameters
        ----------
        graph
            Capture it as a CUDA graph, so that launches from Python are not what is measured. Not for functions that
            wait for the device.
        """
        for _ in range(_WARM if self.device.gpu else 1):
            run()
        if not self.device.gpu:
            return self._median([self._on_cpu(run) for _ in range(_LEAST)], graph=False)
        torch.cuda.synchronize(self.device.torch)
        call: Callable[[], Any] = run
        if graph:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded):
                run()
            call = recorded.replay
        first = self._on_gpu(call, 2)
        runs = int(min(self.most, max(_LEAST, self.seconds / max(min(first), 1e-7))))
        return self._median(self._on_gpu(call, runs), graph)

    def _on_gpu(self, run: Callable[[], Any], runs: int) -> list[float]:
        pairs = [(event(), event()) for _ in range(runs)]
        for start, stop in pairs:
            self._flush.zero_()
            start.record()
            run()
            stop.record()
        torch.cuda.synchronize(self.device.torch)
        return [start.elapsed_time(stop) * 1e-3 for start, stop in pairs]

    def _on_cpu(self, run: Callable[[], Any]) -> float:
        self._flush.zero_()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    @staticmethod
    def _median(times: list[float], graph: bool) -> Timed:
        median = statistics.median(times)
        low, _, high = statistics.quantiles(times, n=4)
        return Timed(median, (high - low) / 2 / median, len(times), graph)
