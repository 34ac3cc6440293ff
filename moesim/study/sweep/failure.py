"""Kind "failure": serve requests under a plan, let something fail, recover; one row is one failure of one plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from moesim.simulate.serving import poisson
from moesim.solve import solve
from moesim.solve.constraints import Constraints
from moesim.study.failures import Recovery, fail, what_is_left
from moesim.study.serving import Serving
from moesim.study.sweep.kinds import Row
from moesim.study.sweep.settings import Common, at_least, check_fit, check_load, parse
from moesim.study.windows import costs_of, part_of, steps_of
from moesim.trace import Trace

COLUMNS: Final = (
    "experts_lost", "picks_lost", "outage_s", "before_tokens_per_s", "degraded_tokens_per_s", "after_tokens_per_s",
    "p99_ttft_s",
)  # fmt: skip
RESULTS: Final = (
    *COLUMNS, "move_s", "mean_tpot_s", "good_share", "recomputed_tokens", "finished", "fewest_copies", "fit_step_s",
    "notes",
)  # fmt: skip


class FailureSettings(Common):
    """Settings of a failure: the common ones, the load, what fails when, and how it recovers."""

    solver: str = "eplb"
    fit: float = 0.5
    survive: bool = False
    failure: str = "node0.gpu0"
    at_s: float = 20.0
    requests: int = 600
    rate: float = 10.0
    prompt: int = 512
    answer: int = 128
    scheduler: str = "least-loaded"
    chunk: int = 2048
    running: int = 256
    kv_tokens: int | None = None
    restart_s: float = 25.0
    plan_s: float | None = 10.0

    def check(self) -> None:
        """Check names and numbers."""
        super().check()
        check_fit(self.fit)
        check_load(self.scheduler, self.rate, self.requests)
        at_least(1, prompt=self.prompt, answer=self.answer, chunk=self.chunk, running=self.running)
        at_least(0, at_s=self.at_s, restart_s=self.restart_s, plan_s=self.plan_s)


def needs(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Callable[[], Any]]:
    """Check settings and name the trace and the cluster."""
    return parse(FailureSettings, settings).needs(folder)


def run(settings: Mapping[str, Any], folder: Path, shared: Mapping[str, Any]) -> Row:
    """Return what one failure does to one plan."""
    chosen = parse(FailureSettings, settings)
    trace: Trace = shared[chosen.trace_key]
    group = chosen.group(shared)
    dims = chosen.dimensions(trace)
    what_is_left(group, chosen.failure)  # refuses what there is not before a plan is searched
    fitted = steps_of(
        part_of(trace, "fit", fit=chosen.fit, seed=chosen.seed), group, phase=chosen.phase,
        tokens_per_rank=chosen.tokens_per_rank, max_steps=chosen.steps, seed=chosen.seed,
    )  # fmt: skip
    costs = costs_of(
        fitted, group, dims=dims, transport=chosen.transport, network=chosen.network, compute=chosen.compute
    )  # fmt: skip
    constraints = Constraints(hot=trace.spec.experts, hot_nodes=2) if chosen.survive else None
    plan = solve(
        fitted, group, slots_per_rank=chosen.slots_of(trace, group), solver=chosen.solver, policy=chosen.policy,
        costs=costs, dims=dims, transport=costs.transport, seed=chosen.seed, deadline_s=chosen.deadline_s, jobs=1,
        constraints=constraints, **chosen.solver_options,
    )  # fmt: skip
    serving = Serving(
        group, plan.placement, chosen.policy, costs, tokens=chosen.chunk, requests=chosen.running,
        kv_tokens=chosen.kv_tokens,
    )  # fmt: skip
    arrivals = poisson(chosen.rate, chosen.requests, prompt=chosen.prompt, output=chosen.answer, seed=chosen.seed)
    recovery = Recovery(
        chosen.restart_s, chosen.plan_s, solver=chosen.solver, options=chosen.solver_options,
        deadline_s=chosen.deadline_s,
    )  # fmt: skip
    held = part_of(trace, "held-out", fit=chosen.fit, seed=chosen.seed)
    found = fail(
        held, arrivals, serving, fitted, chosen.failure, chosen.at_s, recovery=recovery, dims=dims,
        scheduler=chosen.scheduler, seed=chosen.seed,
    )  # fmt: skip
    report = found.report
    facts = report.to_dict()
    return {
        "experts_lost": found.experts,
        "picks_lost": found.picks,
        "outage_s": found.outage_s,
        "move_s": found.move_s,
        "before_tokens_per_s": found.before,
        "degraded_tokens_per_s": found.degraded,
        "after_tokens_per_s": found.after,
        "p99_ttft_s": facts["ttft_s"].get("p99"),
        "mean_tpot_s": facts["tpot_s"].get("mean"),
        "good_share": facts["good_share"],
        "recomputed_tokens": facts["recomputed_tokens"],
        "finished": facts["finished"],
        "fewest_copies": int(plan.placement.replicas.min()),
        "fit_step_s": plan.score_s,
        # served are all layers, whatever the trace holds
        "notes": "\n".join(
            dict.fromkeys(note for note in [*plan.notes, *report.notes] if note != serving.costs.partial_note)
        ),
    }
