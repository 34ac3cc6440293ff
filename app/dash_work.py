"""The work that pages start: planning, judging, pricing. It runs in threads, so nothing here touches Streamlit."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from dash_jobs import Job, Stopped
from dash_state import Inputs

from moesim.base.arrays import digest
from moesim.base.errors import MoesimError
from moesim.base.units import count, show
from moesim.placement import Placement
from moesim.placement.rounds import schedule
from moesim.simulate import Report, simulate
from moesim.solve import SOLVERS, Plan, solve
from moesim.solve.budget import widened
from moesim.solve.constraints import Constraints
from moesim.solve.moving import Move, break_even_s
from moesim.solve.moving import price as price_move
from moesim.solve.objective import Objective
from moesim.solve.survival import Survival, survival
from moesim.study import Judged, judge
from moesim.study.whatif import Outcome, Scenario, price

FAST = ("contiguous", "round-robin", "snake", "lpt", "eplb")
"""Baselines that take milliseconds and run everywhere."""
LOOKED = 2
"""Held-out steps at most that a scenario is priced on: every knob is priced twice, at once."""


def solver_threads() -> int:
    """Return the threads a solver gets: one core stays free for the pages."""
    return max(1, len(os.sched_getaffinity(0)) - 1) if hasattr(os, "sched_getaffinity") else 1


def planning_key(given: Inputs, solvers: tuple[str, ...], **how: Any) -> str:
    """Return the name of a planning job: the digest of all that its answer follows from."""
    running = how.pop("previous", None)
    return digest("plan", given.digest, solvers, {**how, "previous": running.digest if running else ""})


def planning(
    given: Inputs,
    solvers: tuple[str, ...],
    *,
    slots: int,
    policy: str,
    transport: str | None,
    deadline_s: float,
    seed: int,
    previous: Placement | None = None,
    options: Mapping[str, Any] | None = None,
    objective: Objective | None = None,
    constraints: Constraints | None = None,
) -> Callable[[Job], dict[str, Plan]]:
    """Return the work that plans with some solvers and yields the plans by name."""
    costs = given.costs if transport is None else given.costs.with_transport(transport)

    def work(job: Job) -> dict[str, Plan]:
        found: dict[str, Plan] = {}
        first: MoesimError | None = None
        for number, name in enumerate(solvers):
            if job.stopped() and found:
                break
            job.say(f"planning with {name}", number / len(solvers))
            try:
                found[name] = solve(
                    given.fitted, given.cluster, slots_per_rank=slots, solver=name, policy=policy, dims=given.dims,
                    costs=costs, previous=previous, objective=objective, constraints=constraints, seed=seed,
                    deadline_s=deadline_s, jobs=solver_threads(), watch=job.watcher(name), stop=job.stopped,
                    **(dict(options or {}) if len(solvers) == 1 else {}),
                )  # fmt: skip
            except MoesimError as error:
                first = first or error
        if not found:
            if first is not None:
                raise first
            raise Stopped
        return found

    return work


def judging(name: str, plan: Plan, given: Inputs) -> Callable[[Job], Judged]:
    """Return the work that judges one plan on held-out steps."""

    def work(job: Job) -> Judged:
        job.say("simulating held-out steps")
        return judge(plan, given.fitted, given.judged, given.cluster, given.costs, name=name, dims=given.dims)

    return work


def simulating(
    plan: Plan, given: Inputs, *, part: str, schedule: str | None, network: str, policy: str, spans: int
) -> Callable[[Job], Report]:
    """Return the work that simulates steps under a plan, keeping the intervals of step ``spans``."""

    def work(job: Job) -> Report:
        steps = given.judged if part == "held-out" else given.fitted
        job.say(f"simulating {count(len(steps), 'step')}")
        costs = given.costs if plan.transport == given.costs.transport else given.costs.with_transport(plan.transport)
        if network != costs.network:
            costs = dataclasses.replace(costs, network=network)
        return simulate(
            steps, given.cluster, plan, policy=policy, dims=given.dims, costs=costs, schedule=schedule,
            spans=(min(spans, len(steps) - 1),),
        )  # fmt: skip

    return work


def scenario_key(given: Inputs, scenario: Scenario, placement: Placement | None, **how: Any) -> str:
    """Return the name of a priced scenario."""
    return digest(
        "price", given.digest, given.whole.digest, scenario.digest, placement.digest if placement else "", how
    )


def priced(
    given: Inputs, scenario: Scenario, plan: Plan | None, *, engine: str = "closed-form", steps: int | None = None
) -> Outcome:
    """Price a scenario on held-out traffic, on few steps unless told otherwise."""
    held = given.judged.trace
    return price(
        held, given.whole, scenario, placement=plan.placement if plan else None,
        policy=plan.policy if plan else "nearest", transport=plan.transport if plan else given.costs.transport,
        network=given.network, dims=given.dims, phase=given.phase,
        max_steps=min(given.steps, LOOKED) if steps is None else steps, engine=engine,
    )  # fmt: skip


def simulated_fully(given: Inputs, wanted: Scenario, plan: Plan | None) -> Callable[[Job], dict[str, Report]]:
    """Return the work that runs a scenario's held-out steps through the event engine, with a searched placement."""

    def work(job: Job) -> dict[str, Report]:
        job.say("all steps, placed on the spot", 0.1)
        spot = priced(given, wanted, plan, engine="events", steps=given.steps)
        if spot.kept:
            return {"the plan": spot.report}
        job.say("searching a placement for the new sizes", 0.3)
        policy = plan.policy if plan else "nearest"
        searched = solve(
            spot.batches, spot.cluster, slots_per_rank=wanted.slots_per_rank, dims=given.dims, costs=spot.costs,
            policy=policy, deadline_s=20.0, jobs=solver_threads(), stop=job.stopped, watch=job.watcher("moesim"),
        )  # fmt: skip
        job.say("simulating the searched placement", 0.9)
        report = simulate(spot.batches, spot.cluster, searched, dims=given.dims, costs=spot.costs)
        return {"placed on the spot": spot.report, "searched (moesim)": report}

    return work


def move_key(before: Plan, after: Plan, given: Inputs) -> str:
    """Return the name of a priced move."""
    size = given.costs.spec.expert_bytes
    return digest("move", before.placement.digest, after.placement.digest, given.cluster.digest, size)


def moving(before: Plan, after: Plan, given: Inputs) -> Callable[[Job], Move]:
    """Return the work that prices the move from one plan to another, as `moesim migrate` does."""

    def work(job: Job) -> Move:
        job.say("scheduling the copies")
        slots = max(before.placement.slots_per_rank, after.placement.slots_per_rank)
        # further slots are empty: copies may be new where there were none
        old, new = (widened(plan.placement.experts, slots) for plan in (before, after))
        planned = Placement(new, after.placement.num_experts)
        return price_move(schedule(old, planned, node=given.cluster.node), given.cluster,
                          given.costs.spec.expert_bytes)  # fmt: skip

    return work


def paid_after(move: Move, before: Judged, after: Judged) -> float | None:
    """Return the seconds of serving after which faster steps have made up for a move; None: never."""
    return break_even_s(move.seconds, before.row.step_s, after.row.step_s, after.report.model_step_s)


def survival_key(plan: Plan, given: Inputs) -> str:
    """Return the name of a plan's losses."""
    return digest("survive", plan.digest, given.digest)


def surviving(plan: Plan, given: Inputs) -> Callable[[Job], Survival]:
    """Return the work that prices the loss of every GPU and every node under a plan."""
    costs = given.costs if plan.transport == given.costs.transport else given.costs.with_transport(plan.transport)

    def work(job: Job) -> Survival:
        return survival(plan.placement, given.judged, costs, policy=plan.policy, progress=job.say)

    return work


def survival_table(found: Survival) -> dict[str, list[Any]]:
    """Return the losses as columns, the worst first."""
    losses = sorted(found.losses, key=lambda one: (one.step_s is not None, -(one.step_s or 0.0), -one.picks))
    return {
        "lost": [one.name for one in losses],
        "experts gone": [one.experts for one in losses],
        "picks": [f"{one.picks:.1%}" for one in losses],
        "whole again": [
            "never: too few slots"
            if one.restore_s is None
            else show(one.restore_s, "time")
            if one.experts
            else "at once"
            for one in losses
        ],
        "step then": ["-" if one.step_s is None else show(one.step_s, "time") for one in losses],
        "to now": ["-" if one.slower is None else f"{one.slower:.2f}x" for one in losses],
    }


def weights_bytes(plan: Plan, given: Inputs) -> float:
    """Return the bytes of expert weights on the fullest GPU."""
    held = (plan.placement.experts >= 0).sum(axis=2).sum(axis=0)
    return float(np.max(held) * given.costs.spec.expert_bytes)


def split(report: Report) -> dict[str, float]:
    """Return the mean seconds of a step by the phase that the critical path runs through."""
    return {phase: float(seconds.sum()) / report.steps for phase, seconds in report.critical_s.items()}


def solver_names() -> list[str]:
    """Return the solvers, ours first."""
    names = SOLVERS.names()
    return sorted(names, key=lambda name: (name != "moesim", name != "eplb"))


def options_of(name: str) -> dict[str, Any]:
    """Return the options of a solver and their defaults, but for those that solve() has under the same name."""
    taken = inspect.signature(solve).parameters
    defaults = getattr(SOLVERS.get(name), "defaults", {})
    return {option: default for option, default in defaults.items() if option not in taken}
