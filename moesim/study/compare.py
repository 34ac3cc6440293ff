"""Compare solvers: plan on one part of the traffic, judge on another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.errors import Infeasible, InputError, MoesimError
from moesim.base.units import count
from moesim.cluster import Cluster, Deployment
from moesim.costs import Costs
from moesim.placement import Placement
from moesim.simulate import Report
from moesim.solve import SOLVERS, Constraints, Objective, Plan, solve
from moesim.solve.bounds import step_bound
from moesim.solve.moving import break_even_s
from moesim.solve.survival import restored_note, standing
from moesim.solve.windows import check_way, domain_windows
from moesim.spec import ModelSpec
from moesim.study.judge import Judged, Row, adopt, judge
from moesim.study.spread import by_domain
from moesim.study.windows import costs_of, part_notes, parts_of, steps_of_parts
from moesim.trace import PHASES, Batches, Trace

DEFAULT_SOLVERS: Final = ("contiguous", "round-robin", "lpt", "snake", "eplb", "eplb-hierarchical", "moesim")
"""The baselines, and ours."""
STAY: Final = "stay"
"""Row of the placement that runs."""


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Parameters
    ----------
    facts
        What was compared on what: trace, topology and settings, with digests.
    rows
        One for each solver that ran, in the order asked for.
    not_run
        Solver to the reason why it cannot run here.
    plans, reports
        Plan of each solver, and its report on held-out steps with the intervals of the first one.
    notes
        What a reader must know before trusting the numbers.
    fitted, judged
        The steps that plans were fitted on, and judged on.
    cluster, costs
        Ranks of the group, and what turned counts into seconds.
    """

    facts: Mapping[str, Any]
    rows: tuple[Row, ...]
    not_run: Mapping[str, str]
    plans: Mapping[str, Plan] = field(repr=False)
    reports: Mapping[str, Report] = field(repr=False)
    notes: tuple[str, ...] = field(repr=False)
    fitted: Batches = field(repr=False)
    judged: Batches = field(repr=False)
    cluster: Cluster = field(repr=False)
    costs: Costs = field(repr=False)

    @property
    def best(self) -> Row:
        """The row with the shortest held-out step."""
        return min(self.rows, key=lambda row: row.step_s)

    @property
    def bound_s(self) -> float:
        """Mean seconds of a held-out step that no placement can beat."""
        return self.rows[0].bound_s

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with stable keys."""
        return {
            "schema": 1,
            **self.facts,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "not_run": [{"solver": solver, "reason": reason} for solver, reason in self.not_run.items()],
            "best": self.best.solver,
            "bound_s": self.bound_s,
            "notes": list(self.notes),
        }


def compare(
    trace: Trace,
    cluster: Cluster,
    *,
    slots_per_rank: int,
    solvers: Sequence[str] = DEFAULT_SOLVERS,
    policy: str = "nearest",
    transport: str | None = None,
    network: str = "bottleneck",
    compute: str = "roofline",
    fit: float = 0.5,
    held_out: Trace | None = None,
    deployment: Deployment | None = None,
    dims: ModelSpec | None = None,
    tokens_per_rank: int | None = None,
    phase: str | None = None,
    max_steps: int | None = None,
    costs: Costs | None = None,
    windows: str = "time",
    objective: Objective | None = None,
    constraints: Constraints | None = None,
    previous: Placement | ArrayLike | None = None,
    previous_inputs: Mapping[str, Any] | None = None,
    horizon_s: float | None = None,
    regret: bool = False,
    seed: int = 0,
    deadline_s: float = 60.0,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Plan with every solver on one part of the traffic and judge the plans on another.

    Parameters
    ----------
    trace
        Real traffic.
    cluster
        Where it runs.
    slots_per_rank
        Experts that a rank holds in a layer, C.
    solvers
        Names of solvers.
    policy
        Dispatch policy, the same for all.
    transport, network, compute
        Models of the costs, the same for all; see :func:`moesim.study.costs_of`.
    fit
        Fraction of the trace that plans are fitted on; they are judged on the rest.
    held_out
        Other traffic of the same model to judge on; plans are then fitted on all of ``trace``.
    deployment
        The GPUs of the expert-parallel group, default all, and how many share attention, which given costs say
        themselves.
    dims
        Model at whose dimensions the routing is replayed; default its own.
    tokens_per_rank, phase, max_steps
        How the trace becomes steps; see :func:`moesim.study.windows.steps_of_parts`.
    costs
        Given costs, instead of ``transport``, ``network`` and ``compute``.
    windows
        How the fit traffic is cut into windows: ``"time"``, or one a ``"domain"``; then rows tell the worst domain.
    objective, constraints, horizon_s
        What plans make small, respect, and must pay off in; see :func:`moesim.solve.solve`.
    previous
        Placement that runs now, or its experts [layers, ranks, slots], of which some may be nowhere since ranks were
        lost; rows tell what it takes to move, and what staying is worth (row ``stay``), with lost experts restored.
    previous_inputs
        Inputs of the plan that it is of, where it is of one: whether it had seen the held-out steps.
    regret
        Whether to plan on the held-out steps too (solver ``moesim``), to tell how far a plan is from that.
    seed
        Of everything drawn.
    deadline_s
        Seconds that each solver may take.
    progress
        Called with one line before each piece of work.

    Raises
    ------
    UnknownName
        If a solver has no such name.
    InputError
        If parts do not fit one another, or no solver runs here.
    Infeasible
        If it is proven that no placement holds all experts.
    """
    say = progress or (lambda _line: None)
    for name in solvers:
        SOLVERS.get(name)
    if not solvers:
        raise InputError(f"compare: no solver was named; name some of {', '.join(SOLVERS.names())}")
    group = (deployment or Deployment()).restrict(cluster)
    fit_trace, judge_trace = parts_of(trace, held_out, fit=fit, seed=seed)
    say("packing steps")
    size: dict[str, Any] = {"tokens_per_rank": tokens_per_rank, "phase": phase, "max_steps": max_steps, "seed": seed}
    fitted, judged = steps_of_parts(fit_trace, judge_trace, group, **size)
    if costs is None:
        costs = costs_of(
            judged, group, dims=dims, transport=transport, network=network, compute=compute,
            attention_tp=(deployment or Deployment()).attention_tp,
        )  # fmt: skip

    cut: Any = fitted
    if windows == "domain":
        cut = domain_windows(fit_trace, group.ranks, **size | {"phase": PHASES[int(fitted.phase[0])]})
    else:
        check_way(windows)
    asked: dict[str, Any] = {
        "slots_per_rank": slots_per_rank, "policy": policy, "dims": dims, "costs": costs, "transport": costs.transport,
        "objective": objective, "constraints": constraints, "seed": seed, "deadline_s": deadline_s,
    }  # fmt: skip
    plans: dict[str, Plan] = {}
    failed: dict[str, MoesimError] = {}
    for name in dict.fromkeys(solvers):
        say(f"planning with {name}")
        try:
            plans[name] = solve(cut, group, solver=name, previous=previous, horizon_s=horizon_s, **asked)
        except Infeasible:
            raise
        except MoesimError as error:
            failed[name] = error
    if not plans:
        raise next(iter(failed.values()))
    if previous is not None:
        plans[STAY] = _stay(previous, previous_inputs, fitted, group, costs, slots_per_rank, policy, seed)

    say("bounding held-out steps")
    bound_s = step_bound(judged, group, costs, slots_per_rank).step_s
    found: dict[str, Judged] = {}
    for name, plan in plans.items():
        say(f"judging {name} on {count(len(judged), 'held-out step')}")
        found[name] = judge(plan, fitted, judged, group, costs, name=name, bound_s=bound_s, dims=dims, seed=seed)
    found = {name: dataclasses.replace(one, row=_with_move(one, found)) for name, one in found.items()}
    if windows == "domain":
        say("judging every domain")
        for name, one in found.items():
            each = by_domain(one.plan, judged, group, costs, dims=dims, seed=seed)
            worst = max(each, key=lambda spread: spread.step_s)
            row = dataclasses.replace(one.row, worst_domain=worst.domain, worst_domain_step_s=worst.step_s)
            found[name] = dataclasses.replace(one, row=row)
    if regret:
        say("planning on the held-out steps, to tell the regret")
        # with the best of the rows as a candidate, so that it is never worse than any
        best = min(found.values(), key=lambda one: one.row.step_s)
        lasting = asked | {"constraints": _lasting(constraints)}
        knowing_s = solve(judged, group, previous=best.plan.placement, **lasting).score_s
        goal = objective or Objective()
        if (goal.aim, goal.risk) == ("time", "mean"):
            # no layer of it is slower alone, and the whole may be by a little
            knowing_s = min(knowing_s, best.row.step_s)
        for name, one in found.items():
            row = dataclasses.replace(one.row, regret=one.row.step_s / knowing_s - 1)
            found[name] = dataclasses.replace(one, row=row)
    facts = facts_of(trace, held_out, group, costs, fitted, judged, slots_per_rank, fit, seed)
    return gather(
        found, facts, fitted, judged, group, costs, held_out=held_out is not None,
        not_run={name: str(error).removeprefix(f"{name}: ") for name, error in failed.items()},
    )  # fmt: skip


def _with_move(one: Judged, found: Mapping[str, Judged]) -> Row:
    """Return the row of a plan with what it takes to get there, where something runs."""
    move, stay = one.plan.terms.get("migration"), found.get(STAY)
    if stay is None:
        return one.row
    if move is None:
        return dataclasses.replace(one.row, moves=0, move_s=0.0)
    even = None
    if one is not stay:
        # who stays must restore what lost ranks held alone, too
        anyway_s = stay.plan.terms.get("migration", {"move_s": 0.0})["move_s"]
        even = break_even_s(move["move_s"] - anyway_s, stay.row.step_s, one.row.step_s, one.report.model_step_s)
    return dataclasses.replace(one.row, moves=move["moves"], move_s=move["move_s"], break_even_s=even)


def _stay(
    previous: Placement | ArrayLike, inputs: Mapping[str, Any] | None, fitted: Batches, group: Cluster, costs: Costs,
    slots: int, policy: str, seed: int,
) -> Plan:  # fmt: skip
    """Return what runs as a plan; where experts are nowhere since ranks were lost, with these restored."""
    placement, move = standing(previous, fitted, costs, slots)
    plan = adopt(placement, fitted, group, costs, policy=policy, name=STAY, seed=seed, inputs=inputs)
    if move is None:
        return plan
    return dataclasses.replace(plan, terms={"migration": move.to_dict()}, notes=(*plan.notes, restored_note(move)))


def _lasting(constraints: Constraints | None) -> Constraints | None:
    """Return the constraints without those that speak of the placement that runs."""
    if constraints is None:
        return None
    return dataclasses.replace(constraints, most_moves=None, most_bytes=None)


def gather(
    found: Mapping[str, Judged],
    facts: Mapping[str, Any],
    fitted: Batches,
    judged: Batches,
    cluster: Cluster,
    costs: Costs,
    *,
    held_out: bool,
    not_run: Mapping[str, str] | None = None,
) -> Comparison:
    """Return judged plans, at least one, as a comparison.

    Parameters
    ----------
    found
        Name to judged plan.
    facts
        What was compared on what, see :func:`facts_of`.
    held_out
        Whether the held-out steps are of another trace than the fitted ones.
    not_run
        Solver to the reason why it could not run.
    """
    plans = {name: one.plan for name, one in found.items()}
    reports = {name: one.report for name, one in found.items()}
    return Comparison(
        facts=facts,
        rows=tuple(one.row for one in found.values()),
        not_run=MappingProxyType(dict(not_run or {})),
        plans=MappingProxyType(plans),
        reports=MappingProxyType(reports),
        notes=_notes(fitted, judged, held_out, plans, reports),
        fitted=fitted,
        judged=judged,
        cluster=cluster,
        costs=costs,
    )


def facts_of(
    trace: Trace,
    held_out: Trace | None,
    group: Cluster,
    costs: Costs,
    fitted: Batches,
    judged: Batches,
    slots_per_rank: int,
    fit: float,
    seed: int,
) -> dict[str, Any]:
    """Return what is compared on what, with digests, as plain data."""
    return {
        "trace": {
            "model": trace.spec.name,
            "tokens": trace.tokens,
            "digest": trace.digest,
            "held_out_digest": held_out.digest if held_out is not None else trace.digest,
            "synthetic": bool(trace.origin.get("synthetic", False)),
        },
        "topology": {"name": group.name, "ranks": group.ranks, "nodes": group.nodes, "digest": group.digest},
        "settings": {
            "model": costs.spec.name,
            "slots_per_rank": slots_per_rank,
            "network": costs.network,
            "compute": costs.compute_name,
            "fit": fit if held_out is None else None,
            "phase": PHASES[int(judged.phase[0])],
            "tokens_per_rank": judged.tokens_per_rank,
            "fit_steps": len(fitted),
            "held_out_steps": len(judged),
            "seed": seed,
        },
    }


def _notes(
    fitted: Batches,
    judged: Batches,
    held_out: bool,
    plans: Mapping[str, Plan],
    reports: Mapping[str, Report],
) -> tuple[str, ...]:
    notes = part_notes(fitted, judged)
    seen = {name: int(report.seen.sum()) for name, report in reports.items() if report.seen.any()}
    if seen:
        who = "plans" if len(seen) == len(reports) else ", ".join(seen)
        notes.append(
            f"tokens that {who} {'was' if who in seen else 'were'} fitted on are in {max(seen.values())} of "
            f"{count(len(judged), 'held-out step')}"
        )
    if not held_out and fitted.trace.has_steps:
        straddling = np.intersect1d(fitted.trace.request, judged.trace.request).size
        if straddling:
            total = np.unique(judged.trace.request).size
            notes.append(f"cut in time: {straddling} of {count(total, 'held-out request')} had begun before the cut")
    if not held_out and not fitted.trace.has_steps:
        notes.append("steps were not recorded: whole requests were dealt to the two parts by the seed")
    report = next(iter(reports.values()))
    notes += [note for note in report.notes if note not in judged.notes]
    common = {*fitted.notes, *report.notes}
    of_all = set.intersection(*(set(plan.notes) for plan in plans.values())) if len(plans) > 1 else set()
    notes += [
        f"plans: {note}" if note in of_all else f"{name}: {note}"
        for name, plan in plans.items()
        for note in plan.notes
        if note not in common
    ]
    return tuple(dict.fromkeys(notes))
