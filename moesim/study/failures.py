"""Failures while serving: a GPU, a node or a NIC goes away or slows down; what is out of reach, and how it recovers.

What happens after a loss, in order: the engine stops for `Recovery.restart_s` (detection, rebuilding the group);
experts that no rank holds any more are read from storage into slots of spare copies; it serves on, slower; a new plan
for what is left is made beside serving and its experts are moved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import Infeasible, InputError
from moesim.cluster import Cluster
from moesim.placement import Placement
from moesim.simulate.serving import Arrivals, Change, ServingReport, TokenSource
from moesim.solve import solve
from moesim.solve.limits import holders
from moesim.solve.loads import count_loads
from moesim.solve.moving import price
from moesim.solve.survival import costs_on, restored, without_ranks
from moesim.solve.terms import steps_of_move
from moesim.spec import ModelSpec
from moesim.study.serving import Serving, serve_plan, served_model, step_model
from moesim.trace import Batches, Trace

_BIN_S: Final = 1.0
"""Seconds over which throughput is counted."""


@dataclass(frozen=True)
class Recovery:
    """What recovering takes beside bytes.

    Parameters
    ----------
    restart_s
        Seconds without serving after a loss: detection, rebuilding the group.
    plan_s
        Seconds from the restart until a new plan is there; serving goes on meanwhile. None: there is none.
    solver, options, deadline_s
        Who makes it.
    """

    restart_s: float = 25.0
    plan_s: float | None = 30.0
    solver: str = "eplb"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    deadline_s: float = 3600.0


@dataclass(frozen=True)
class Failed:
    """What a failure did.

    Parameters
    ----------
    report
        The serving run.
    experts, picks
        Experts that no rank held any more, over all layers, and the share of picks that want one.
    at_s, outage_s, move_s
        When it happened; seconds without serving after it; seconds that serving stopped for the new plan.
    before, degraded, after
        Generated tokens a second before it, between restart and new plan, and after the new plan.
    """

    report: ServingReport
    experts: int
    picks: float
    at_s: float
    outage_s: float
    move_s: float
    before: float
    degraded: float | None
    after: float | None


def fail(
    trace: Trace,
    arrivals: Arrivals,
    serving: Serving,
    batches: Batches,
    what: str,
    at_s: float,
    *,
    recovery: Recovery | None = None,
    dims: ModelSpec | None = None,
    scheduler: str = "least-loaded",
    seed: int = 0,
    slo_ttft_s: float = 2.0,
    slo_tpot_s: float = 0.1,
) -> Failed:
    """Serve requests, and let something fail meanwhile.

    Parameters
    ----------
    batches
        Traffic that new plans are fitted on, and that says how much a missing expert is missed.
    what
        ``"node1"``, ``"node0.gpu3"`` or ``"node0.nic3"`` goes away; ``"node0.gpu3=0.5"`` keeps a part of its speed.
    at_s
        When.

    Raises
    ------
    InputError
        If the cluster has no such part, or a time is negative.
    Infeasible
        If what is left cannot hold all experts, or a rank has no room to receive one beside its slots.
    """
    how = recovery or Recovery()
    for name, seconds in (("at_s", at_s), ("restart_s", how.restart_s), ("plan_s", how.plan_s)):
        if seconds is not None and not seconds >= 0:
            raise InputError(f"failure: {name}: must not be negative, got {seconds}")
    model, _ = served_model(trace, dims)
    source = TokenSource(trace, len(arrivals), seed)
    left, alive = what_is_left(serving.cluster, what)
    dead = np.setdiff1d(np.arange(serving.cluster.ranks), alive)
    running = serving.placement.experts[:, alive]
    missing = ~holders(running, serving.placement.num_experts).any(axis=2)
    loads = count_loads(batches)
    whole = restored(running, loads)
    if whole is None:
        raise Infeasible(
            f"failure of {what}: the slots that are left cannot hold all experts; take more slots per rank, or let "
            "less fail"
        )
    costs = costs_on(serving.costs, left)
    rank_of = np.full(serving.cluster.ranks, -1)
    rank_of[alive] = np.arange(len(alive))

    def priced(placement: Placement) -> Any:
        part = dataclasses.replace(serving, cluster=left, placement=placement, costs=costs)
        return step_model(part, source, model, rank_of=rank_of, seed=seed)

    bytes_each = model.expert_bytes * model.layers / trace.layers
    restore_s = price(steps_of_move(running, whole, model, left, model.layers), left, bytes_each).seconds
    outage_s = how.restart_s + restore_s if len(dead) else 0.0
    changes = [Change(at_s, pause_s=outage_s, model=priced(whole), lost=dead.tolist())]
    move_s = 0.0
    planned_s = None
    if how.plan_s is not None:
        again = without_ranks(batches, dead) if len(dead) else batches
        plan = solve(
            again, left, slots_per_rank=serving.placement.slots_per_rank, solver=how.solver, policy=serving.policy,
            costs=costs, transport=costs.transport, dims=dims, previous=whole, seed=seed, deadline_s=how.deadline_s,
            jobs=1, **how.options,
        ).placement  # fmt: skip
        move_s = price(steps_of_move(whole.experts, plan, model, left, model.layers), left, bytes_each).seconds
        planned_s = at_s + outage_s + how.plan_s
        changes.append(Change(planned_s, pause_s=move_s, model=priced(plan)))
    report = serve_plan(
        trace, arrivals, serving, dims=dims, scheduler=scheduler, changes=changes, seed=seed,
        slo_ttft_s=slo_ttft_s, slo_tpot_s=slo_tpot_s,
    )  # fmt: skip
    back = at_s + outage_s
    return Failed(
        report=report,
        experts=int(missing.sum()),
        picks=float(loads[missing].sum() / max(loads.sum(), 1.0)),
        at_s=at_s,
        outage_s=outage_s,
        move_s=move_s,
        before=_rate(report, at_s / 4, at_s) or 0.0,
        degraded=_rate(report, back, planned_s or float(arrivals.at_s[-1])),
        after=None if planned_s is None else _rate(report, planned_s + move_s, float(arrivals.at_s[-1])),
    )


def what_is_left(cluster: Cluster, what: str) -> tuple[Cluster, Array]:
    """Return the cluster after a failure, and which ranks of the whole it has, in its order.

    Raises
    ------
    InputError
        If there is no such part, or nothing is left.
    """
    name, _, part = what.partition("=")
    everyone = np.arange(cluster.ranks)
    kind = name.rpartition(".")[2].rstrip("0123456789")
    if part:
        try:
            left = float(part)
        except ValueError:
            left = np.nan
        if not 0 < left <= 1:
            raise InputError(
                f"failure {what!r}: expected NAME=PART such as node0.gpu3=0.5, with what remains above 0 and up to 1"
            )
        if kind != "gpu":
            return cluster.edit({}, (), {name: left}), everyone
        speed = np.array(cluster.speed)
        speed[_ranks(cluster, name)] *= left
        return dataclasses.replace(cluster, name=f"{cluster.name} with {what}", speed=speed), everyone
    if kind == "nic":
        # its GPU goes on through the NICs of others, over NVLink
        return cluster.edit({"through_ranks": True}, (name,), {}), everyone
    alive = np.setdiff1d(everyone, _ranks(cluster, name))
    if not len(alive):
        raise InputError(f"failure of {what}: nothing of {cluster.name} is left; let less fail, or take more nodes")
    return cluster.restrict(alive.tolist()), alive


def throughput(report: ServingReport) -> tuple[Array, Array]:
    """Return seconds and the tokens that were generated in each second; a prompt counts as its first token."""
    steps = np.concatenate(list(report.steps.values()))
    ends = np.concatenate([steps["end_s"], report.first_s[np.isfinite(report.first_s)]])
    tokens = np.concatenate([steps["decode"], np.ones(len(ends) - len(steps))])
    bins = (ends // _BIN_S).astype(np.int64)
    count = np.bincount(bins, weights=tokens)
    return np.arange(len(count)) * _BIN_S, count / _BIN_S


def _rate(report: ServingReport, start: float, stop: float) -> float | None:
    """Return generated tokens a second between two times; None where there is no second between them."""
    if stop - start < _BIN_S:
        return None
    steps = np.concatenate(list(report.steps.values()))
    inside = (steps["end_s"] >= start) & (steps["end_s"] < stop)
    firsts = np.count_nonzero((report.first_s >= start) & (report.first_s < stop))
    return float((steps["decode"][inside].sum() + firsts) / (stop - start))


def _ranks(cluster: Cluster, name: str) -> Array:
    """Return the ranks of a GPU or of all GPUs of a node, int64 [1 or more]."""
    found = cluster.ranks_of(name)
    if not found:
        names = cluster.rank_names
        raise InputError(
            f"failure of {name}: {cluster.name} has no such GPU, NIC or node; its GPUs are {names[0]} to {names[-1]}"
        )
    return np.array(found)
