"""What a serving run found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.units import count, show

STEP: Final = np.dtype([("end_s", "<f8"), ("step_s", "<f8"), ("decode", "<i8"), ("prefill", "<i8"), ("waiting", "<i8")])
"""One step of a pool: when it ended, how long it took, tokens of both phases, requests that waited at its end."""


@dataclass(frozen=True, eq=False)
class ServingReport(Sealed):
    """What a serving run found; seconds count from the first arrival or the start of the process.

    Symbols: n requests, R ranks of a pool.

    Parameters
    ----------
    facts
        What was served by what, with digests.
    arrival_s, first_s, finish_s
        float64 [n]: arrival, first token, last token; nan where it never came.
    prompt, output, generated, recomputed
        int64 [n]: tokens of prompt and answer asked for; answered; computed again after a preemption or a failure.
    rejected
        bool [n]: requests that no rank can hold.
    preempted
        Times that a request lost its cache for others.
    busy_s
        Pool to float64 [R]: seconds in which each rank computes.
    steps
        Pool to its steps, of dtype `STEP`.
    span_s
        Seconds until everything was done.
    slo_ttft_s, slo_tpot_s
        Limits that a good request keeps.
    notes
        What a reader must know.
    """

    facts: Mapping[str, Any]
    arrival_s: Array
    first_s: Array
    finish_s: Array
    prompt: Array
    output: Array
    generated: Array
    recomputed: Array
    rejected: Array
    preempted: int
    busy_s: Mapping[str, Array]
    steps: Mapping[str, Array]
    span_s: float
    slo_ttft_s: float
    slo_tpot_s: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seal(self, "arrival_s", self.arrival_s, np.float64, ("requests",))
        sizes = {"requests": len(self.arrival_s)}
        for name in ("first_s", "finish_s"):
            seal(self, name, getattr(self, name), np.float64, ("requests",), sizes)
        for name in ("prompt", "output", "generated", "recomputed"):
            seal(self, name, getattr(self, name), np.int64, ("requests",), sizes)
        seal(self, "rejected", self.rejected, np.bool_, ("requests",), sizes)

    @property
    def finished(self) -> Array:
        """Bool [n]: requests that were answered to the end."""
        return np.isfinite(self.finish_s)

    @property
    def ttft_s(self) -> Array:
        """Seconds from arrival to the first token [answered requests]."""
        return np.asarray((self.first_s - self.arrival_s)[np.isfinite(self.first_s)])

    @property
    def tpot_s(self) -> Array:
        """Mean seconds a token after the first [finished requests with at least two tokens]."""
        many = self.finished & (self.output > 1)
        return np.asarray((self.finish_s - self.first_s)[many] / (self.output[many] - 1))

    @property
    def good(self) -> Array:
        """Bool [n]: finished requests within both limits."""
        with np.errstate(invalid="ignore"):
            quick = self.first_s - self.arrival_s <= self.slo_ttft_s
            rest = np.maximum(self.output - 1, 1)
            smooth = (self.finish_s - self.first_s) / rest <= self.slo_tpot_s
        good: Array = self.finished & quick & smooth
        return good

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second of the whole run."""
        return float(self.generated.sum() / self.span_s) if self.span_s else 0.0

    @property
    def requests_per_s(self) -> float:
        """Finished requests a second of the whole run."""
        return float(self.finished.sum() / self.span_s) if self.span_s else 0.0

    @property
    def goodput(self) -> float:
        """Requests a second within both limits."""
        return float(self.good.sum() / self.span_s) if self.span_s else 0.0

    @property
    def utilisation(self) -> dict[str, Array]:
        """Pool to the part of the run in which each rank computes [R]."""
        return {pool: busy / self.span_s if self.span_s else busy for pool, busy in self.busy_s.items()}

    def stepping(self, pool: str) -> float:
        """Return the part of the run in which a pool steps."""
        return float(self.steps[pool]["step_s"].sum() / self.span_s) if self.span_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with stable keys."""
        return {
            "schema": 1,
            **self.facts,
            "requests": len(self.arrival_s),
            "finished": int(self.finished.sum()),
            "rejected": int(self.rejected.sum()),
            "preempted": self.preempted,
            "recomputed_tokens": int(self.recomputed.sum()),
            "prompt_tokens": int(self.prompt.sum()),
            "generated_tokens": int(self.generated.sum()),
            "span_s": self.span_s,
            "ttft_s": _spread(self.ttft_s),
            "tpot_s": _spread(self.tpot_s),
            "tokens_per_s": self.tokens_per_s,
            "requests_per_s": self.requests_per_s,
            "goodput_requests_per_s": self.goodput,
            "good_share": float(self.good.mean()) if len(self.good) else 0.0,
            "slo": {"ttft_s": self.slo_ttft_s, "tpot_s": self.slo_tpot_s},
            "pools": {name: self._pool(name) for name in self.busy_s},
            "notes": list(self.notes),
        }

    def _pool(self, name: str) -> dict[str, Any]:
        steps, used = self.steps[name], self.utilisation[name]
        waits = steps["waiting"]
        mean_waiting = float((waits * steps["step_s"]).sum() / steps["step_s"].sum()) if len(steps) else 0.0
        return {
            "ranks": len(used),
            "steps": len(steps),
            "mean_step_s": float(steps["step_s"].mean()) if len(steps) else 0.0,
            "tokens_per_step": float((steps["decode"] + steps["prefill"]).mean()) if len(steps) else 0.0,
            "stepping": self.stepping(name),
            "mean_waiting": mean_waiting,
            "most_waiting": int(waits.max()) if len(steps) else 0,
            "utilisation": [round(float(value), 6) for value in used],
        }

    def summary(self) -> str:
        """Return one readable screen of plain text."""
        ttft, tpot = _spread(self.ttft_s), _spread(self.tpot_s)

        def line(name: str, values: Mapping[str, float]) -> str:
            return f"{name}  " + ", ".join(f"{key} {show(value, 'time')}" for key, value in values.items())

        out = [
            f"{self.facts['model']} on {self.facts['topology']}: {count(len(self.arrival_s), 'request')} "
            f"({self.facts['arrivals']}), {int(self.finished.sum()):,} answered in {self.span_s:,.0f} s",
            line("time to first token  ", ttft),
            line("time per output token", tpot),
            f"throughput             {self.tokens_per_s:,.0f} tokens/s, {self.requests_per_s:.4g} requests/s",
            f"goodput                {self.goodput:.4g} requests/s within {show(self.slo_ttft_s, 'time')} and "
            f"{show(self.slo_tpot_s, 'time')} a token ({self.good.mean():.1%})",
        ]
        for name, used in self.utilisation.items():
            facts = self._pool(name)
            size = f"{show(facts['mean_step_s'], 'time')} and {facts['tokens_per_step']:,.0f} tokens"
            out += [
                f"pool {name}: {count(facts['ranks'], 'rank')}, {count(facts['steps'], 'step')} of {size}, stepping "
                f"{facts['stepping']:.0%} of the time; ranks compute {used.min():.0%} to {used.max():.0%} of it; "
                f"{facts['mean_waiting']:.3g} requests wait (at most {facts['most_waiting']:,})"
            ]
        if self.preempted or self.rejected.any():
            out.append(
                f"{count(self.preempted, 'preemption')} ({count(int(self.recomputed.sum()), 'token')} computed again), "
                f"{count(int(self.rejected.sum()), 'request')} that fit no rank"
            )
        return "\n".join(out)


def _spread(values: Array) -> dict[str, float]:
    if not len(values):
        return {}
    p50, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99)).tolist()
    return {"mean": float(values.mean()), "p50": p50, "p90": p90, "p99": p99}
