"""Judging one plan on traffic it was not fitted to, whoever made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moesim.base.units import show
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.placement import Placement
from moesim.simulate import Report, simulate
from moesim.simulate.inputs import FITTED_ON
from moesim.solve import Plan
from moesim.solve.bounds import step_bound
from moesim.solve.objective import score
from moesim.spec import ModelSpec
from moesim.trace import Batches


@dataclass(frozen=True)
class Row:
    """One solver, judged. Every figure but ``fit_step_s`` and ``solve_s`` is on held-out steps.

    Parameters
    ----------
    solver, policy, transport
        What was compared.
    step_s
        Mean seconds of a step.
    all_to_all_s, compute_s
        Seconds of it in which the critical path runs through dispatch or combine, and through experts.
    imbalance, batch_imbalance
        Max over mean tokens of a rank, mean over layers: summed over the window, and step by step.
    cross_node_bytes
        Bytes that leave their node in a mean step.
    bound_s, gap
        Seconds that no placement can beat, and ``step_s / bound_s - 1``.
    solve_s
        Seconds that planning took, without those in which kernels were compiled.
    fit_step_s
        Mean seconds of a step on the traffic that the plan was fitted to.
    worst_step_s
        Seconds of the slowest step.
    worst_domain, worst_domain_step_s
        Domain that is slowest when steps hold it alone, and mean seconds of its steps; None where not asked for.
    regret
        How much longer the step takes than under a plan that had seen the held-out steps; None where not asked for.
    moves, move_s, break_even_s
        Experts to receive coming from the placement that runs, seconds of that, and seconds of serving until it has
        paid off on held-out steps (None: never); None where nothing runs.
    """

    solver: str
    policy: str
    transport: str
    step_s: float
    all_to_all_s: float
    compute_s: float
    imbalance: float
    batch_imbalance: float
    cross_node_bytes: float
    bound_s: float
    gap: float
    solve_s: float
    fit_step_s: float
    worst_step_s: float
    worst_domain: str | None = None
    worst_domain_step_s: float | None = None
    regret: float | None = None
    moves: int | None = None
    move_s: float | None = None
    break_even_s: float | None = None


def columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the table of a comparison for people: title to cells, one a row; what was not asked for is left out."""

    def cells(name: str, kind: str) -> list[str]:
        values = [getattr(row, name) for row in rows]
        return ["-" if value is None else f"{value:.1%}" if kind == "share" else show(value, kind) for value in values]

    found = {
        "solver": [row.solver for row in rows],
        "step": cells("step_s", "time"),
        "all-to-all": cells("all_to_all_s", "time"),
        "experts": cells("compute_s", "time"),
        "imbalance": [f"{row.imbalance:.3f}" for row in rows],
        "per batch": [f"{row.batch_imbalance:.3f}" for row in rows],
        "cross-node": cells("cross_node_bytes", "bytes"),
        "gap": cells("gap", "share"),
        "fit step": cells("fit_step_s", "time"),
        "planned in": [f"{row.solve_s:.1f} s" for row in rows],
    }
    if any(row.worst_domain is not None for row in rows):
        worst = cells("worst_domain_step_s", "time")
        found["worst domain"] = [f"{row.worst_domain} {step}" for row, step in zip(rows, worst, strict=True)]
    if any(row.regret is not None for row in rows):
        found["regret"] = cells("regret", "share")
    if any(row.moves is not None for row in rows):
        found["moves"] = [f"{row.moves or 0:,}" for row in rows]
        found["move"], found["break-even"] = cells("move_s", "time"), cells("break_even_s", "time")
    return found


@dataclass(frozen=True)
class Judged:
    """A plan, its row of a comparison, and its report on held-out steps with the intervals of the first one."""

    plan: Plan = field(repr=False)
    row: Row
    report: Report = field(repr=False)


def judge(
    plan: Plan,
    fitted: Batches,
    judged: Batches,
    cluster: Cluster,
    costs: Costs,
    *,
    name: str | None = None,
    bound_s: float | None = None,
    dims: ModelSpec | None = None,
    seed: int = 0,
) -> Judged:
    """Return what a plan is worth, under its own policy and transport.

    Parameters
    ----------
    fitted, judged
        Steps that the plan was fitted on, for comparison, and held-out ones.
    cluster, costs
        Ranks of the group and what turns counts into seconds; the transport becomes the plan's.
    name
        What the row calls the plan. Default: its solver.
    bound_s
        Seconds that no placement can beat on the held-out steps, where they are known already.
    dims
        Model at whose dimensions the costs are, where they are not the trace's own.

    Raises
    ------
    InputError
        If the plan is for other ranks or another model.
    """
    costs = costs if plan.transport == costs.transport else costs.with_transport(plan.transport)
    report = simulate(judged, cluster, plan, dims=dims, costs=costs, spans=(0,), seed=seed)
    fit_report = simulate(fitted, cluster, plan, dims=dims, costs=costs, seed=seed)
    if bound_s is None:
        bound_s = step_bound(judged, cluster, costs, plan.placement.slots_per_rank).step_s
    row = Row(
        solver=name or plan.solver,
        policy=plan.policy,
        transport=plan.transport,
        step_s=report.mean_step_s,
        all_to_all_s=report.all_to_all_s,
        compute_s=report.compute_s,
        imbalance=report.imbalance,
        batch_imbalance=report.batch_imbalance,
        cross_node_bytes=report.cross_node_bytes,
        bound_s=bound_s,
        gap=report.mean_step_s / bound_s - 1,
        solve_s=plan.wall_s,
        fit_step_s=fit_report.mean_step_s,
        worst_step_s=float(report.step_s.max()),
    )
    return Judged(plan, row, report)


def adopt(
    placement: Placement,
    fitted: Batches,
    cluster: Cluster,
    costs: Costs,
    *,
    policy: str = "nearest",
    name: str = "placement",
    seed: int = 0,
    inputs: Mapping[str, Any] | None = None,
) -> Plan:
    """Return a placement from elsewhere as a plan: scored and bounded on the steps that plans are fitted on.

    Parameters
    ----------
    name
        Stands for the solver.
    inputs
        Those of the plan that the placement is of, where it is of one: they say what it was fitted on.

    Raises
    ------
    InputError
        If the placement is for another model or other ranks.
    """
    placement = placement.for_model(costs.spec)
    found = score(fitted, placement, costs, policy, seed)
    bound = step_bound(fitted, cluster, costs, placement.slots_per_rank)
    known = {} if inputs is None or not set(inputs) >= FITTED_ON else {name: inputs[name] for name in FITTED_ON}
    return Plan(
        placement=placement,
        policy=policy,
        transport=costs.transport,
        score_s=found.mean_s,
        bound_s=bound.step_s,
        layer_score_s=found.layer_s.mean(axis=0),
        layer_bound_s=bound.layer_s,
        solver=name,
        seed=seed,
        inputs=known | {"cluster": cluster.name, "cluster_digest": cluster.digest, "model": costs.spec.name},
        notes=() if known else ("a placement from elsewhere: what it was fitted to is not known",),
    )
