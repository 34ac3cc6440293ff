"""Kind "serve": serve requests under a plan; one row is one deployment under one load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.cluster import Cluster, Deployment
from moesim.simulate.serving import Arrivals, gamma, poisson, read_arrivals
from moesim.study.serving import Serving, kv_path, serve_plan
from moesim.study.sweep.kinds import Row
from moesim.study.sweep.settings import Common, at_least, check_fit, check_load, parse
from moesim.study.sweep.step import planned
from moesim.study.windows import costs_of, part_of, steps_of
from moesim.trace import DECODE, PHASES, PREFILL, Trace

COLUMNS: Final = ("mean_ttft_s", "p99_ttft_s", "mean_tpot_s", "out_tokens_per_s_per_gpu", "good_share", "stepping")
RESULTS: Final = (
    "gpus", "finished", "rejected", "preempted", "mean_ttft_s", "p50_ttft_s", "p90_ttft_s", "p99_ttft_s", "mean_tpot_s",
    "p50_tpot_s", "p90_tpot_s", "p99_tpot_s", "out_tokens_per_s", "out_tokens_per_s_per_gpu", "requests_per_s",
    "goodput_requests_per_s", "good_share", "stepping", "mean_step_s", "most_waiting", "notes",
)  # fmt: skip


class ServeSettings(Common):
    """Settings of a serving run: the common ones, the load, and the engine."""

    solver: str = "eplb"
    fit: float = 0.5
    arrivals: str = "poisson"
    rate: float = 10.0
    cv: float = 2.0
    requests: int | None = 500
    faster: float = 1.0
    prompt: int = 1024
    answer: int = 128
    scheduler: str = "least-loaded"
    prefill_ranks: int | None = None
    chunk: int = 2048
    running: int = 256
    memory_fraction: float = 0.9
    kv_tokens: int | None = None
    overhead_ms: float = 0.0
    slo_ttft_s: float = 2.0
    slo_tpot_ms: float = 100.0

    def check(self) -> None:
        """Check names."""
        super().check()
        if self.phase is not None:
            raise InputError("phase: prompts are prefilled and answers decoded in every serving run; leave it out")
        check_fit(self.fit)
        check_load(self.scheduler, self.rate, self.requests)
        at_least(1, prompt=self.prompt, answer=self.answer, chunk=self.chunk, running=self.running)
        at_least(0, overhead_ms=self.overhead_ms)

    def load(self, folder: Path) -> Arrivals:
        """Return the requests."""
        if self.arrivals in ("poisson", "gamma"):
            size: dict[str, Any] = {"prompt": self.prompt, "output": self.answer, "seed": self.seed}
            number = self.requests or 500
            if self.arrivals == "poisson":
                return poisson(self.rate, number, **size)
            return gamma(self.rate, number, cv=self.cv, **size)
        return read_arrivals(folder / self.arrivals).first(self.requests)


def needs(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Callable[[], Any]]:
    """Check settings and name the trace, the cluster and the requests."""
    chosen = parse(ServeSettings, settings)
    return chosen.needs(folder) | {_key(chosen): lambda: chosen.load(folder)}


def run(settings: Mapping[str, Any], folder: Path, shared: Mapping[str, Any]) -> Row:
    """Return what became of the requests."""
    chosen = parse(ServeSettings, settings)
    trace: Trace = shared[chosen.trace_key]
    whole = chosen.group(shared)
    arrivals: Arrivals = shared[_key(chosen)]
    dims = chosen.dimensions(trace)
    first = chosen.prefill_ranks or None  # 0: all ranks do both
    if first is not None and not 0 < first < whole.ranks:
        raise InputError(f"prefill_ranks: expected 0 to {whole.ranks - 1} of {count(whole.ranks, 'rank')}, got {first}")
    groups = [whole] if first is None else [
        Deployment(size=first).restrict(whole), whole.restrict(range(first, whole.ranks))
    ]  # fmt: skip
    parts = [_part(chosen, trace, group, len(groups) == 1 or number == 1) for number, group in enumerate(groups)]
    report = serve_plan(
        part_of(trace, "held-out", fit=chosen.fit, seed=chosen.seed), arrivals.faster(chosen.faster), parts[0],
        decode=parts[1] if len(parts) > 1 else None, path=kv_path(whole, groups[0].ranks) if len(parts) > 1 else None,
        dims=dims, scheduler=chosen.scheduler, overhead_s=chosen.overhead_ms / 1e3, slo_ttft_s=chosen.slo_ttft_s,
        slo_tpot_s=chosen.slo_tpot_ms / 1e3, seed=chosen.seed,
    )  # fmt: skip
    facts = report.to_dict()
    return {
        "gpus": whole.ranks,
        "finished": facts["finished"],
        "rejected": facts["rejected"],
        "preempted": facts["preempted"],
        **{f"{name}_ttft_s": value for name, value in facts["ttft_s"].items()},
        **{f"{name}_tpot_s": value for name, value in facts["tpot_s"].items()},
        "out_tokens_per_s": report.tokens_per_s,
        "out_tokens_per_s_per_gpu": report.tokens_per_s / whole.ranks,
        "requests_per_s": report.requests_per_s,
        "goodput_requests_per_s": report.goodput,
        "good_share": facts["good_share"],
        "stepping": max(pool["stepping"] for pool in facts["pools"].values()),
        "mean_step_s": facts["pools"][next(reversed(facts["pools"]))]["mean_step_s"],
        "most_waiting": max(pool["most_waiting"] for pool in facts["pools"].values()),
        "notes": "\n".join(report.notes),
    }


def _part(chosen: ServeSettings, trace: Trace, group: Cluster, decode: bool) -> Serving:
    wanted = DECODE if decode else PREFILL
    phase = PHASES[wanted] if (trace.phase == wanted).any() else None
    fit = part_of(trace, "fit", fit=chosen.fit, seed=chosen.seed)
    fitted = steps_of(
        fit, group, phase=phase, tokens_per_rank=chosen.tokens_per_rank, max_steps=chosen.steps, seed=chosen.seed
    )  # fmt: skip
    dims = chosen.dimensions(trace)
    costs = costs_of(
        fitted, group, dims=dims, transport=chosen.transport, network=chosen.network, compute=chosen.compute
    )  # fmt: skip
    plan = planned(chosen, fitted, group, costs, chosen.slots_of(trace, group), dims)
    return Serving(
        group, plan.placement, chosen.policy, costs, tokens=chosen.chunk, requests=chosen.running,
        memory_fraction=chosen.memory_fraction, kv_tokens=chosen.kv_tokens,
    )  # fmt: skip


def _key(chosen: ServeSettings) -> str:
    drawn = (chosen.rate, chosen.cv, chosen.prompt, chosen.answer, chosen.seed)
    return f"arrivals:{chosen.arrivals}|{chosen.requests}|" + (
        "|".join(str(value) for value in drawn) if chosen.arrivals in ("poisson", "gamma") else ""
    )
