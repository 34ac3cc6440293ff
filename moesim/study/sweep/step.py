"""Kind "step": plan on one part of the traffic, judge a step on the other; one row is one cell of a comparison."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from moesim.base.arrays import digest
from moesim.base.errors import UnknownName
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.simulate import simulate
from moesim.simulate.run import ENGINES
from moesim.simulate.schedules import get_schedule
from moesim.solve import Plan, solve
from moesim.solve.bounds import step_bound
from moesim.spec import ModelSpec
from moesim.study.sweep.kinds import Row
from moesim.study.sweep.settings import Common, check_fit, parse
from moesim.study.windows import costs_of, part_notes, parts_of, steps_of, steps_of_parts
from moesim.trace import PHASES, Batches, Trace

COLUMNS: Final = ("step_s", "tokens_per_s_per_gpu", "all_to_all_s", "compute_s", "batch_imbalance", "cross_node_bytes")
RESULTS: Final = (
    "gpus", "nodes", "slots_per_rank", "redundant_experts", "transport_used", "phase_used", "tokens_per_step", "step_s",
    "p99_step_s", "layer_s", "model_step_s", "tokens_per_s", "tokens_per_s_per_gpu", "all_to_all_s", "compute_s",
    "attention_s", "wait_s", "imbalance", "batch_imbalance", "cross_node_bytes", "expert_bytes_per_gpu", "bound_s",
    "gap", "plan_digest", "bottleneck", "notes",
)  # fmt: skip
_PLANS_KEPT: Final = 16
"""Plans that a worker remembers: neighbouring points of a grid often differ in what a plan does not depend on."""


class StepSettings(Common):
    """Settings of a step: the common ones, and how the trace is divided."""

    fit: float = 0.5
    held_out: str | None = None
    fit_phase: str | None = None
    schedule: str | None = None
    engine: str = "closed-form"

    def check(self) -> None:
        """Check names."""
        super().check()
        check_fit(self.fit)
        if self.schedule is not None:
            get_schedule(self.schedule)
        for kind, name, known in (("phase", self.fit_phase, PHASES), ("engine", self.engine, ENGINES)):
            if name is not None and name not in known:
                raise UnknownName(kind, name, known)

    def needs(self, folder: Path) -> dict[str, Callable[[], Any]]:
        """Return what is read from files: the trace, the held-out trace if one is named, and the cluster."""
        found = super().needs(folder)
        if (other := self._other) is not None:
            found[other.trace_key] = lambda: other.read_trace(folder)
        return found

    def parts(self, shared: Mapping[str, Any]) -> tuple[Trace, Trace]:
        """Return what plans are fitted on and what they are judged on."""
        other = None if self._other is None else shared[self._other.trace_key]
        return parts_of(shared[self.trace_key], other, fit=self.fit, seed=self.seed)

    @property
    def _other(self) -> StepSettings | None:
        return None if self.held_out is None else self.model_copy(update={"trace": self.held_out})


def needs(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Callable[[], Any]]:
    """Check settings and name the trace, the held-out trace and the cluster."""
    return parse(StepSettings, settings).needs(folder)


def run(settings: Mapping[str, Any], folder: Path, shared: Mapping[str, Any]) -> Row:
    """Return one row of a comparison."""
    chosen = parse(StepSettings, settings)
    trace: Trace = shared[chosen.trace_key]
    group = chosen.group(shared)
    fit_part, judge_part = chosen.parts(shared)
    size: dict[str, Any] = {"tokens_per_rank": chosen.tokens_per_rank, "max_steps": chosen.steps, "seed": chosen.seed}
    if chosen.fit_phase is None:
        fitted, judged = steps_of_parts(fit_part, judge_part, group, phase=chosen.phase, **size)
    else:
        judged = steps_of(judge_part, group, phase=chosen.phase, **size)
        fitted = steps_of(fit_part, group, phase=chosen.fit_phase, **size)
    dims = chosen.dimensions(trace)
    how: dict[str, Any] = {"dims": dims, "network": chosen.network, "compute": chosen.compute}
    costs = costs_of(judged, group, transport=chosen.transport, **how)
    fit_costs = costs_of(fitted, group, transport=chosen.transport, **how)
    slots = chosen.slots_of(trace, group)
    plan = planned(chosen, fitted, group, fit_costs, slots, dims)
    engine = "events" if chosen.schedule == "two-batch" else chosen.engine
    report = simulate(
        judged, group, plan.placement, policy=chosen.policy, costs=costs, schedule=chosen.schedule, engine=engine,
        seed=chosen.seed,
    )  # fmt: skip
    bound_s = step_bound(judged, group, costs, slots).step_s if chosen.schedule is None else None
    mean = report.mean_step_s
    notes = [note for note in plan.notes if note not in (*fitted.notes, *costs.assumptions)]
    notes += part_notes(fitted, judged)
    return {
        "gpus": group.ranks,
        "nodes": group.nodes,
        "slots_per_rank": slots,
        "redundant_experts": slots * group.ranks - trace.spec.experts,
        "transport_used": costs.transport,
        "phase_used": report.facts.get("phase"),
        "tokens_per_step": float(report.step_tokens.mean()),
        "step_s": mean,
        "p99_step_s": report.p99_step_s,
        "layer_s": mean / trace.layers,
        "model_step_s": report.model_step_s,
        "tokens_per_s": report.tokens_per_s,
        "tokens_per_s_per_gpu": report.tokens_per_s_per_gpu,
        "all_to_all_s": report.all_to_all_s,
        "compute_s": report.compute_s,
        "attention_s": report.attention_s,
        "wait_s": report.mean_wait_s,
        "imbalance": report.imbalance,
        "batch_imbalance": report.batch_imbalance,
        "cross_node_bytes": report.cross_node_bytes,
        "expert_bytes_per_gpu": slots * trace.layers * costs.spec.expert_bytes,
        "bound_s": bound_s,
        "gap": None if bound_s is None else mean / bound_s - 1,
        "plan_digest": plan.placement.digest,
        "bottleneck": report.bottleneck,
        "notes": "\n".join(dict.fromkeys(notes)),
    }


def planned(chosen: Common, fitted: Batches, group: Cluster, costs: Costs, slots: int, dims: ModelSpec | None) -> Plan:
    """Return the plan of a point, from memory where this process has made it already."""
    key = digest(
        fitted.digest, group.digest, costs.digest, slots, chosen.solver, chosen.solver_options, chosen.policy,
        chosen.seed, chosen.deadline_s,
    )  # fmt: skip
    with _LOCK:
        if key in _PLANS:
            _PLANS.move_to_end(key)
            return _PLANS[key]
    # one thread a point: the points run side by side
    plan = solve(
        fitted, group, slots_per_rank=slots, solver=chosen.solver, policy=chosen.policy, costs=costs, dims=dims,
        transport=costs.transport, seed=chosen.seed, deadline_s=chosen.deadline_s, jobs=1, **chosen.solver_options,
    )  # fmt: skip
    with _LOCK:
        _PLANS[key] = plan
        while len(_PLANS) > _PLANS_KEPT:
            _PLANS.popitem(last=False)
    return plan


_LOCK: Final = threading.Lock()
_PLANS: Final[OrderedDict[str, Plan]] = OrderedDict()
