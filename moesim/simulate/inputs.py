"""From what the user gave to what the engines need: one checked Setup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError, UnknownName
from moesim.base.units import count
from moesim.cluster import Cluster, Deployment
from moesim.costs import Costs
from moesim.placement import POLICIES, Placement
from moesim.simulate.jitter import check_jitter
from moesim.simulate.schedules import Schedule, get_schedule
from moesim.simulate.training import Training
from moesim.spec import ModelSpec
from moesim.trace import DECODE, PHASES, TRAIN, Batches, Trace, make_batches
from moesim.trace.checks import check_seed

DEFAULT_POLICY: Final = "nearest"
FITTED_ON: Final = frozenset({"trace", "origin", "steps", "requests"})
"""Inputs of a plan that say what it was fitted on."""
UNKNOWN_FIT: Final = "a placement does not say what it was fitted on: which steps it had seen is not known"


@dataclass(frozen=True, eq=False)
class Setup:
    """What is simulated, checked: every part fits every other."""

    batches: Batches
    cluster: Cluster
    placement: Placement
    policy: str
    costs: Costs
    schedule: Schedule
    seen: Array
    notes: tuple[str, ...]
    seed: int
    jitter: float = 0.0
    training: Training | None = None


def prepare(
    trace: Trace | Batches,
    cluster: Cluster,
    plan: Any,
    *,
    policy: str | None,
    transport: str | None,
    network: str | None,
    schedule: str | Schedule | None,
    deployment: Deployment | None,
    dims: ModelSpec | None,
    tokens_per_rank: int | Mapping[int, int] | None,
    phase: str | None,
    costs: Costs | None,
    max_steps: int | None,
    seed: int,
    jitter: float = 0.0,
    training: Training | None = None,
) -> Setup:
    """Return the setup of a simulation; see :func:`moesim.simulate.simulate` for the arguments.

    Raises
    ------
    InputError
        If the parts do not fit one another; the message says which and what to do.
    UnknownName
        If a policy, schedule or phase has no such name.
    """
    placement = plan if isinstance(plan, Placement) else getattr(plan, "placement", None)
    if not isinstance(placement, Placement):
        raise InputError(f"simulate: expected a plan or a placement, got {type(plan).__name__}")
    policy = policy or getattr(plan, "policy", None) or DEFAULT_POLICY
    if policy not in POLICIES.names():
        raise UnknownName(POLICIES.kind, policy, POLICIES.names())
    check_seed(seed)
    group = deployment.restrict(cluster) if deployment else cluster
    batches = _batches(trace, group, tokens_per_rank, phase, max_steps, seed)
    spec = batches.trace.spec
    _check_fit(placement, spec, group)
    notes = list(batches.notes)
    if dims is not None:
        spec = spec.at_dimensions(dims)
    if costs is None:
        transport = transport or getattr(plan, "transport", None)
        decode = bool((batches.phase == DECODE).all())
        tp = deployment.attention_tp if deployment else 1
        costs = Costs.default(
            spec, group, transport=transport, network=network or "bottleneck", decode=decode, attention_tp=tp
        )
    else:
        _check_costs(costs, spec, group, transport, network)
        if dims is not None and costs.spec != spec:
            raise InputError(
                f"simulate: the costs are for {costs.spec.name}, the dimensions of {dims.name} are asked for; "
                "give one of the two"
            )
        if deployment is not None and deployment.attention_tp != costs.attention_tp:
            raise InputError(
                f"simulate: the costs are for attention_tp {costs.attention_tp}, the deployment has "
                f"{deployment.attention_tp}; give Costs.default the same"
            )
    for name, ran in (("policy", policy), ("transport", costs.transport)):
        planned = getattr(plan, name, None)
        if planned not in (None, ran):
            notes.append(f"the plan was made for {name} {planned}; simulated under {ran}")
    if costs.spec.name != batches.trace.spec.name:
        theirs = dims.name if dims is not None else costs.spec.name
        notes.append(f"routing of {batches.trace.spec.name} replayed at the dimensions of {theirs}")
        if dense := costs.spec.dense_layers:
            own = costs.spec.dense_intermediate
            notes.append(
                f"depth stays that of {batches.trace.spec.name}: {count(dense, 'dense layer')}, here {own} wide"
            )
    planned_for = getattr(plan, "inputs", {}).get("model")
    if planned_for not in (None, costs.spec.name):
        notes.append(f"the plan was made for {planned_for}; simulated for {costs.spec.name}")
    if schedule is None:
        schedule = "shared-overlap" if costs.shared_expert == "overlap" else "sequential"
    schedule = get_schedule(schedule)
    if schedule.contends:
        notes.append(
            f"{schedule.name}: communication kernels take their SMs from compute while both run; memory bandwidth "
            "that they share is not subtracted"
        )
    seen, remark = seen_steps(batches, getattr(plan, "inputs", None))
    notes += [*([remark] if remark else []), *costs.notes]
    notes += _training_notes(batches, training)
    return Setup(
        batches, group, placement, policy, costs, schedule, seen, _unique(notes), seed, check_jitter(jitter), training
    )


def _training_notes(batches: Batches, training: Training | None) -> list[str]:
    """Return what to know of a training step, and refuse what the trace cannot give."""
    if training is None:
        train = bool((batches.phase == TRAIN).any())
        return ["train steps: the forward pass only; ask for training to add the backward pass"] if train else []
    if training.drop == "probs" and training.capacity_factor is not None and batches.trace.weights is None:
        raise InputError(
            "simulate: dropping by probs needs gate weights, which the trace did not record; "
            "drop by position or record them"
        )
    return ["training: forward and backward pass; optimizer and gradients of dense weights are left out"]


def seen_steps(batches: Batches, inputs: Mapping[str, Any] | None) -> tuple[Array, str]:
    """Return which steps hold tokens that the plan was fitted on, and a remark where that is not known.

    A plan's inputs name the trace it was fitted on: ``trace`` (its digest), ``origin`` (its ``origin_digest``),
    ``steps`` and ``requests`` (ids that occur in the fit). A token was seen if it is of the same recording and both
    its step and its request occur in the fit.
    """
    unseen = np.zeros(len(batches), dtype=bool)
    if inputs is None:
        return unseen, UNKNOWN_FIT
    if not set(inputs) >= FITTED_ON:
        return unseen, "the plan does not list the steps and requests it was fitted on: which it had seen is not known"
    trace = batches.trace
    if inputs["trace"] != trace.digest and inputs["origin"] != trace.origin_digest:
        return unseen, ""
    known = np.isin(trace.step, inputs["steps"]) & np.isin(trace.request, inputs["requests"])
    tokens = known[batches.token].astype(np.int64)
    before = np.concatenate([[0], np.cumsum(tokens)])
    seen: Array = before[batches.offsets[1:]] > before[batches.offsets[:-1]]
    return seen, ""


def _batches(
    trace: Trace | Batches,
    cluster: Cluster,
    tokens_per_rank: int | Mapping[int, int] | None,
    phase: str | None,
    max_steps: int | None,
    seed: int,
) -> Batches:
    if phase is not None and phase not in PHASES:
        raise UnknownName("phase", phase, PHASES)
    if not isinstance(trace, Batches):
        trace = make_batches(
            trace, cluster.ranks, tokens_per_rank=tokens_per_rank, phase=phase, seed=seed, max_steps=max_steps
        )
    elif tokens_per_rank is not None or phase is not None or max_steps is not None:
        raise InputError(
            "simulate: batches are given, so tokens_per_rank, phase and max_steps are settled; "
            "leave them out or give the trace"
        )
    elif trace.ranks != cluster.ranks:
        raise InputError(
            f"simulate: the batches are for {count(trace.ranks, 'rank')}, cluster {cluster.name} has {cluster.ranks}; "
            "make them for its ranks"
        )
    if not len(trace):
        raise InputError("simulate: there is no step to simulate; give a longer trace or fewer tokens_per_rank")
    return trace


def _check_fit(placement: Placement, spec: ModelSpec, cluster: Cluster) -> None:
    if placement.ranks != cluster.ranks:
        raise InputError(
            f"simulate: the placement is for {count(placement.ranks, 'rank')}, cluster {cluster.name} has "
            f"{cluster.ranks}; solve for this cluster, or take as many ranks of it"
        )
    if placement.layers != spec.layers:
        raise InputError(
            f"simulate: the placement has {count(placement.layers, 'MoE layer')}, the trace of {spec.name} has "
            f"{spec.layers}; solve for this model"
        )
    if placement.num_experts != spec.experts:
        raise InputError(
            f"simulate: the placement has {count(placement.num_experts, 'expert')}, the trace of {spec.name} has "
            f"{spec.experts}; solve for this model"
        )


def _check_costs(costs: Costs, spec: ModelSpec, cluster: Cluster, transport: str | None, network: str | None) -> None:
    for name, wanted in (("transport", transport), ("network", network)):
        if wanted is not None and wanted != getattr(costs, name):
            raise InputError(
                f"simulate: the costs are for {name} {getattr(costs, name)!r}, {wanted!r} is asked for; "
                "give one of the two"
            )
    if costs.cluster.digest != cluster.digest:
        raise InputError(f"simulate: the costs are for another cluster ({costs.cluster.name}) than {cluster.name}")
    if (priced := _sizes(costs.spec)) != (traced := _sizes(spec)):
        raise InputError(
            f"simulate: the costs are for model {costs.spec.name} ({priced}), the trace is of {spec.name} ({traced}); "
            "make the costs for the trace's model, at other dimensions through spec.at_dimensions"
        )


def _sizes(spec: ModelSpec) -> str:
    return f"{count(spec.layers, 'layer')}, {count(spec.experts, 'expert')}, top {spec.top_k}"


def _unique(notes: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notes))
