"""solve(): run a solver, verify its answer, score and bound it, and wrap it in a Plan."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.arrays import Array
from moesim.base.errors import Infeasible, InputError, UnknownName
from moesim.base.units import count
from moesim.cluster import Cluster, Deployment
from moesim.costs import Costs
from moesim.placement import EMPTY, POLICIES, Placement
from moesim.placement.clock import working_s
from moesim.solve.bounds import step_bound
from moesim.solve.budget import widened
from moesim.solve.constraints import Constraints
from moesim.solve.limits import holders
from moesim.solve.memory import check_memory
from moesim.solve.objective import Objective
from moesim.solve.plan import Plan
from moesim.solve.problem import SOLVERS, Problem, complete_options
from moesim.solve.progress import Stop, Watcher
from moesim.solve.terms import report, respecting, with_budget
from moesim.solve.windows import check_way, domain_windows, joined, time_windows
from moesim.spec import ModelSpec
from moesim.trace import PHASES, PREFILL, Trace
from moesim.trace.batching import Batches, make_batches
from moesim.trace.checks import check_seed


def solve(
    trace: Trace | Batches | Sequence[Batches],
    cluster: Cluster,
    *,
    slots_per_rank: int,
    solver: str = "moesim",
    policy: str = "nearest",
    transport: str | None = None,
    deployment: Deployment | None = None,
    dims: ModelSpec | None = None,
    tokens_per_rank: int | Mapping[int, int] | None = None,
    phase: str | None = None,
    costs: Costs | None = None,
    windows: str = "time",
    objective: Objective | None = None,
    constraints: Constraints | None = None,
    previous: Placement | ArrayLike | None = None,
    horizon_s: float | None = None,
    seed: int = 0,
    deadline_s: float = 60.0,
    jobs: int | None = None,
    watch: Watcher | None = None,
    stop: Stop | None = None,
    **options: Any,
) -> Plan:
    """Return a verified placement with its score and the bound that no placement can beat.

    Parameters
    ----------
    trace
        The traffic to fit, or its steps, or windows of steps of one trace.
    slots_per_rank
        Experts that a rank can hold in a layer, C.
    solver
        Name in ``SOLVERS``; ``options`` go to it.
    policy
        Dispatch policy that will run, and that the plan is scored under.
    transport
        Name of the transport; None takes that of ``costs``, or ``hierarchical``.
    deployment
        Which ranks of the cluster form the expert-parallel group, and how many share attention; all, and none by
        default.
    dims
        Replay the routing at another model's dimensions.
    tokens_per_rank, phase
        How the trace is batched, see :func:`moesim.trace.make_batches`.
    costs
        Cost models; the usual ones by default.
    windows
        How a trace is cut into the windows that the objective puts together: ``"time"``, or one a ``"domain"``.
    objective
        What the plan is to make small; the mean step time by default.
    constraints
        What the placement must respect beside slots and memory.
    previous
        Placement that runs now, or its experts [layers, ranks, slots], of which some may be nowhere since ranks were
        lost. Like ranks are renumbered so that few experts move, and to stay is a candidate of ``moesim``.
    horizon_s
        Seconds of serving in which a move must pay off, layer by layer; None takes moves to be free.
    seed, deadline_s, jobs
        Source of all randomness; seconds of wall clock, compilation aside; threads (all cores by default).
    watch, stop
        Called with the :class:`~moesim.solve.progress.Progress` of the solver; asked whether to end with the best so
        far, which the plan then notes, and why if the answer is a text.

    Raises
    ------
    UnknownName
        If there is no such solver, policy, transport, phase or option.
    Infeasible
        If the slots cannot hold all experts, the experts do not fit the memory, or it is proven that no placement
        respects the constraints.
    InputError
        If the parts do not fit one another, or a solver returns what is no placement.
    """
    started, began = working_s(), time.monotonic()
    function = SOLVERS.get(solver)
    complete = complete_options(function, solver, options)
    if policy not in POLICIES.names():
        raise UnknownName(POLICIES.kind, policy, POLICIES.names())
    group = deployment.restrict(cluster) if deployment else cluster
    cut, notes = _steps(trace, group, tokens_per_rank, phase, seed, windows)
    batches = joined(cut)
    spec = batches.trace.spec
    if dims is not None:
        spec = spec.at_dimensions(dims)
        notes.append(f"routing of {batches.trace.spec.name} replayed at the dimensions of {dims.name}")
    costs = _costs(costs, spec, group, transport, deployment)
    _check_slots(slots_per_rank, spec, group)
    running = None if previous is None else running_experts(previous, spec, group, slots_per_rank)
    if horizon_s is not None and running is None:
        raise InputError("solve: a horizon needs the placement that runs; give the previous placement")
    if horizon_s is not None and not horizon_s > 0:
        raise InputError(f"solve: expected a horizon of more than 0 s, got {horizon_s}")
    check_seed(seed)
    if not deadline_s > 0:
        raise InputError(f"solve: deadline: expected more than 0 s, got {deadline_s}")
    problem = Problem(
        spec=spec,
        cluster=group,
        batches=cut,
        slots_per_rank=slots_per_rank,
        costs=costs,
        policy=policy,
        previous=None if running is None or _lacking(running, spec) else Placement(running, spec.experts),
        running=running,
        horizon_s=math.inf if horizon_s is None else horizon_s,
        objective=objective or Objective(),
        constraints=constraints or Constraints(),
        seed=seed,
        deadline_s=deadline_s,
        jobs=jobs or len(os.sched_getaffinity(0)),
        options=complete,
        notes=notes,
        started=started,
        watch=watch,
        stop=stop,
    )
    problem = with_budget(problem)
    check_memory(spec, group, problem.limits.room)
    if problem.limits.strict:
        _ = problem.start  # what cannot be is told before the solver runs
    answer = function(problem)
    why = stop and stop()  # what follows is no part of the search
    placement = respecting(verified(answer, problem, solver), problem, solver).for_model(spec)
    scored = problem.score(placement)
    if why:
        reason = why if isinstance(why, str) else "stopped on request"
        problem.note(f"{reason} after {time.monotonic() - began:.0f} s: the best placement until then")
    problem.tell("done", scored.mean_s, 1.0)
    # the bound is none of the solver's time, nor is the compiler; another thread may end a compilation begun before
    wall_s = max(working_s() - started, 0.0)
    bound = step_bound(problem.batches, group, costs, slots_per_rank, problem.jobs)
    terms = report(placement, scored, problem)
    return Plan(
        placement=placement,
        policy=policy,
        transport=costs.transport,
        score_s=scored.mean_s,
        bound_s=bound.step_s,
        layer_score_s=scored.layer_s.mean(axis=0),
        layer_bound_s=bound.layer_s,
        solver=solver,
        options=complete,
        seed=seed,
        wall_s=wall_s,
        inputs=_inputs(batches, group, costs, problem),
        terms=terms,
        notes=tuple(dict.fromkeys([*problem.notes, *costs.notes])),
    )


def verified(experts: Any, problem: Problem, solver: str) -> Placement:
    """Return what a solver answered as a placement.

    Raises
    ------
    InputError
        If an expert is nowhere or twice on a rank, an id is out of range, or the shape is not the problem's.
    """
    found = np.asarray(experts)
    wanted = (problem.layers, problem.ranks, problem.slots_per_rank)
    if found.shape != wanted or not np.issubdtype(found.dtype, np.integer):
        raise InputError(
            f"solver {solver!r} returned {found.dtype} of shape {found.shape}, expected integers of shape {wanted} "
            "[layers, ranks, slots]; report it to the solver's author"
        )
    try:
        return Placement(found, problem.experts)
    except InputError as error:
        raise InputError(f"solver {solver!r} returned no valid placement: {error}") from None


def _check_slots(slots_per_rank: int, spec: ModelSpec, cluster: Cluster) -> None:
    if slots_per_rank < 1:
        raise InputError(f"slots_per_rank: expected at least 1, got {slots_per_rank}")
    if slots_per_rank * cluster.ranks < spec.experts:
        least = -(-spec.experts // cluster.ranks)
        raise Infeasible(
            f"slots: {count(cluster.ranks, 'rank')} of {count(slots_per_rank, 'slot')} can hold "
            f"{count(slots_per_rank * cluster.ranks, 'expert')}, {spec.name} has {spec.experts}; give at least "
            f"{count(least, 'slot')} per rank"
        )


def running_experts(previous: Placement | ArrayLike, spec: ModelSpec, cluster: Cluster, slots_per_rank: int) -> Array:
    """Return the experts that run, int32 [layers, ranks, slots]; fewer slots a rank are filled up with empty ones.

    Raises
    ------
    InputError
        If they are not those of this model on these ranks, or have more slots.
    """
    found = previous.experts if isinstance(previous, Placement) else np.asarray(previous)
    experts = previous.num_experts if isinstance(previous, Placement) else spec.experts
    shape = found.shape if found.ndim == 3 else (0, 0, 0)
    if (*shape[:2], experts) != (spec.layers, cluster.ranks, spec.experts) or shape[2] > slots_per_rank:
        raise InputError(
            f"previous placement: has (layers, ranks, slots per rank, experts) {(*shape, experts)}, the problem has "
            f"{(spec.layers, cluster.ranks, slots_per_rank, spec.experts)}; give the placement that runs on these ranks"
        )
    if not np.issubdtype(found.dtype, np.integer) or found.min() < EMPTY or found.max() >= experts:
        raise InputError(f"previous placement: expected experts in 0..{experts - 1}, or {EMPTY} for an empty slot")
    return widened(found, slots_per_rank).astype(np.int32)


def _lacking(running: Array, spec: ModelSpec) -> bool:
    """Return whether an expert is nowhere."""
    return not bool(holders(running, spec.experts).any(axis=2).all())


def _steps(
    trace: Trace | Batches | Sequence[Batches],
    cluster: Cluster,
    tokens_per_rank: int | Mapping[int, int] | None,
    phase: str | None,
    seed: int,
    windows: str,
) -> tuple[tuple[Batches, ...], list[str]]:
    notes: list[str] = []
    check_way(windows)
    if phase is not None and phase not in PHASES:
        raise UnknownName("phase", phase, PHASES)
    if isinstance(trace, Trace):
        phases = np.unique(trace.phase)
        if phase is None and len(phases) > 1 and not isinstance(tokens_per_rank, Mapping):
            phase = PHASES[PREFILL] if PREFILL in phases else PHASES[int(phases[0])]
            held = " and ".join(PHASES[int(code)] for code in phases)
            notes.append(f"the trace holds {held}; the plan is for {phase} (choose with phase)")
        if windows == "domain":
            cut = domain_windows(trace, cluster.ranks, tokens_per_rank=tokens_per_rank, phase=phase, seed=seed)
        else:
            batches = make_batches(trace, cluster.ranks, tokens_per_rank=tokens_per_rank, phase=phase, seed=seed)
            cut = time_windows(batches)
    else:
        if tokens_per_rank is not None or phase is not None:
            raise InputError("solve: steps are given, so tokens_per_rank and phase are settled; leave them out")
        cut = time_windows(trace) if isinstance(trace, Batches) else tuple(trace)
        for window in cut:
            if window.ranks != cluster.ranks:
                raise InputError(
                    f"solve: the steps are for {count(window.ranks, 'rank')}, cluster {cluster.name} has "
                    f"{cluster.ranks}; make them for its ranks"
                )
    if not sum(len(window) for window in cut):
        raise InputError("solve: there is no step to fit; give a longer trace or fewer tokens_per_rank")
    return cut, [*notes, *joined(cut).notes]


def _costs(
    costs: Costs | None, spec: ModelSpec, cluster: Cluster, transport: str | None, deployment: Deployment | None
) -> Costs:
    tp = deployment.attention_tp if deployment else 1
    if costs is None:
        return Costs.default(spec, cluster, transport=transport or "hierarchical", attention_tp=tp)
    if deployment is not None and tp != costs.attention_tp:
        raise InputError(
            f"solve: the costs are for attention_tp {costs.attention_tp}, the deployment has {tp}; give Costs.default "
            "the same"
        )
    if transport is not None and transport != costs.transport:
        costs = costs.with_transport(transport)
    if costs.cluster.digest != cluster.digest:
        raise InputError(f"solve: the costs are for cluster {costs.cluster.name!r}, not for {cluster.name!r}")
    if (costs.spec.layers, costs.spec.experts, costs.spec.top_k) != (spec.layers, spec.experts, spec.top_k):
        raise InputError(f"solve: the costs are for model {costs.spec.name!r}, the trace is of {spec.name!r}")
    return costs


def _inputs(batches: Batches, cluster: Cluster, costs: Costs, problem: Problem) -> dict[str, Any]:
    """Return what the plan was made from; a report tells from it which steps the plan had seen."""
    trace = batches.trace
    rows = np.unique(batches.token)
    return {
        "trace": trace.digest,
        "origin": trace.origin_digest,
        "steps": np.unique(trace.step[rows]).tolist(),
        "requests": np.unique(trace.request[rows]).tolist(),
        "batches": batches.digest,
        "tokens_per_rank": batches.tokens_per_rank,
        "cluster": cluster.name,
        "cluster_digest": cluster.digest,
        "costs": costs.digest,
        "model": costs.spec.name,
        "previous": problem.previous.digest if problem.previous is not None else None,
    }
