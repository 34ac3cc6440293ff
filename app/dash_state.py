"""The only module that touches the session, the URL and the caches.

Values of widgets live in the session under the keys of `SHARED` and survive page switches; those that are small stand
in the URL too, so that a link shows another person the same thing. What is computed is kept by the digest of what it
was computed from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dash_files
import dash_jobs
import streamlit as st

from moesim.base.arrays import digest
from moesim.base.errors import InputError
from moesim.cluster import Cluster, Deployment
from moesim.costs import Costs
from moesim.placement import Placement
from moesim.solve import Plan
from moesim.spec import ModelSpec
from moesim.study import adopt, costs_of, fewest_slots, part_of, steps_of_parts
from moesim.trace import Batches, Trace

AUTO = "as recorded"
BY_PHASE = "by phase"
OWN = "its own"
REST = "the rest of the same trace"
BASELINE = "contiguous"
"""The plan that others are compared with: what engines do without a map."""

SHARED: dict[str, Any] = {
    # inputs
    "trace": "sample:bundled-moe-fit.parquet",
    "held": "sample:bundled-moe-eval.parquet",
    "fit": 0.5,
    "topology": "preset:h100-4x8-rail",
    "ranks": 0,
    "dims": "deepseek-v3",
    "phase": AUTO,
    "tokens": 0,
    "steps": 8,
    "network": "bottleneck",
    # plan
    "solver": "moesim",
    "slots": 0,
    "policy": "nearest",
    "transport": BY_PHASE,
    "deadline": 30.0,
    "seed": 0,
    # what if
    "w_between": 1.0,
    "w_inside": 1.0,
    "w_nodes": 0,
    "w_ranks": 0,
    "w_slots": -1,
    "w_tokens": 0,
    "w_failed": (),
    "w_mix": (),
}
"""Key of the session and of the URL to its default; 0 means: as it comes from the rest."""
_LOCAL = ("upload:",)
_TUPLES = ("w_failed", "w_mix")


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything that pages compute from, consistent with one another."""

    trace: Trace
    held_out: Trace | None
    fit: float
    whole: Cluster
    cluster: Cluster
    dims: ModelSpec | None
    phase: str | None
    tokens_per_rank: int | None
    fitted: Batches
    judged: Batches
    costs: Costs
    network: str
    steps: int

    @property
    def digest(self) -> str:
        return digest(self.fitted.digest, self.judged.digest, self.cluster.digest, self.costs.digest)

    @property
    def fewest_slots(self) -> int:
        return fewest_slots(self.costs.spec.experts, self.cluster.ranks)


def begin() -> None:
    """Fill the session on its first run: from the URL where it says something sensible, else with defaults."""
    state = st.session_state
    if "plans" in state:
        _collect()
        return
    state.plans = {}
    state.shelf = {}
    state.awaited = []
    for key, default in SHARED.items():
        state[key] = default
        given = st.query_params.get_all(key) if key in _TUPLES else st.query_params.get(key)
        if given:
            with contextlib.suppress(ValueError):
                value = _parsed(key, given, default)
                state[key] = value


def _parsed(key: str, given: Any, default: Any) -> Any:
    if key in _TUPLES:
        return tuple(str(one) for one in given)
    if isinstance(default, float):
        value = float(given)
        if not 0 < value < 1e4:
            raise ValueError(key)
        return value
    if isinstance(default, int):
        value = int(given)
        if not -1 <= value <= 10**6:
            raise ValueError(key)
        return value
    if key in ("trace", "held") and given != REST:
        dash_files_known(given)
    return str(given)


def dash_files_known(reference: str) -> None:
    """Raise ValueError where a link names a file that was not offered."""
    try:
        dash_files.locate(reference)
    except InputError as error:
        raise ValueError(str(error)) from None


def share() -> None:
    """Write into the URL what differs from the defaults and is small; uploads stay here."""
    wanted: dict[str, Any] = {}
    for key, default in SHARED.items():
        value = st.session_state.get(key, default)
        plain = st.session_state.get("natural", {}).get(key, default)
        if value is None or value in (default, plain) or str(value).startswith(_LOCAL):
            continue
        wanted[key] = (
            [str(one) for one in value] if key in _TUPLES else f"{value:g}" if isinstance(value, float) else str(value)
        )
    there = {key: st.query_params.get_all(key) if key in _TUPLES else st.query_params[key] for key in st.query_params}
    if there != wanted:
        st.query_params.from_dict(wanted)


def get(key: str) -> Any:
    """Return a value of the session, also where its widget is not on this page."""
    return st.session_state.get(key, SHARED.get(key))


def put(key: str, value: Any) -> None:
    """Set a value of the session; not after its widget was drawn in the same run."""
    st.session_state[key] = value


def dark() -> bool:
    """Return whether the browser shows the dark theme."""
    return st.context.theme.type == "dark"


# --- inputs ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=6)
def _offered_trace(stamp: str, reference: str, model: str | None) -> Trace:
    return dash_files.read_trace(reference, model)


@lru_cache(maxsize=16)
def _offered_cluster(stamp: str, reference: str) -> Cluster:
    return dash_files.read_cluster(reference)


def _trace(reference: str) -> tuple[str, Callable[[], Trace]]:
    """Return what names a trace, and how to get it."""
    if reference in st.session_state.shelf:
        there: Trace = st.session_state.shelf[reference]
        return there.digest, lambda: there
    stamp, model = dash_files.stamp(reference), st.session_state.get("recorded") or None
    return f"{stamp} {model}", lambda: _offered_trace(stamp, reference, model)


def _cluster(reference: str) -> tuple[str, Callable[[], Cluster]]:
    """Return what names a topology, and how to get it."""
    if reference in st.session_state.shelf:
        there: Cluster = st.session_state.shelf[reference]
        return there.digest, lambda: there
    stamp = dash_files.stamp(reference)
    return stamp, lambda: _offered_cluster(stamp, reference)


def choices(kind: str) -> dict[str, str]:
    """Return what can be chosen, uploads first: reference to label."""
    mark = f"upload:{kind}:"
    mine = {key: f"upload: {key.removeprefix(mark)}" for key in st.session_state.shelf if key.startswith(mark)}
    return mine | dash_files.offered(kind)


def keep_upload(kind: str, name: str, thing: Any) -> str:
    """Keep what an upload held for this session and return its reference; of a kind the last four stay."""
    reference = f"upload:{kind}:{name}"
    shelf = st.session_state.shelf
    shelf.pop(reference, None)
    same = [key for key in shelf if key.startswith(f"upload:{kind}:")]
    for old in same[: max(0, len(same) - 3)]:
        del shelf[old]
    shelf[reference] = thing
    return reference


def _inputs(
    trace: Trace, held_out: Trace | None, fit: float, whole: Cluster, ranks: int, dims: ModelSpec | None,
    phase: str | None, tokens: int | None, steps: int, network: str,
) -> Inputs:  # fmt: skip
    group = Deployment(size=ranks or None).restrict(whole)
    if held_out is None:
        fit_trace, judge_trace = part_of(trace, "fit", fit=fit), part_of(trace, "held-out", fit=fit)
    else:
        ours, theirs = trace.spec, held_out.spec
        if (ours.layers, ours.experts, ours.top_k) != (theirs.layers, theirs.experts, theirs.top_k):
            raise InputError(
                f"the held-out trace is of another model: {theirs.name} ({theirs.layers} layers, {theirs.experts} "
                f"experts), not {ours.name} ({ours.layers}, {ours.experts}); judge on traffic of the same model"
            )
        if ours != theirs or trace.digest != held_out.digest:
            fit_trace, judge_trace = trace, held_out
        else:
            raise InputError("the held-out trace is the fit trace itself; choose other traffic, or the rest of it")
    size: dict[str, Any] = {"tokens_per_rank": tokens, "phase": phase, "max_steps": steps}
    fitted, judged = steps_of_parts(fit_trace, judge_trace, group, **size)
    costs = costs_of(judged, group, dims=dims, network=network)
    return Inputs(trace, held_out, fit, whole, group, dims, phase, tokens, fitted, judged, costs, network, steps)


def inputs() -> tuple[str, Callable[[dash_jobs.Job], Inputs]]:
    """Return what names the inputs that were chosen, and the work that makes them.

    Raises
    ------
    MoesimError
        If a file is gone; what else does not fit, the work says.
    """
    fit_name, fit_trace = _trace(get("trace"))
    held_name, held = ("", None) if get("held") == REST else _trace(get("held"))
    whole_name, whole = _cluster(get("topology"))
    dims = None if get("dims") == OWN else get("dims")
    phase = None if get("phase") == AUTO else get("phase")
    fit, ranks, network = float(get("fit")), int(get("ranks")), str(get("network"))
    tokens, steps = int(get("tokens")) or None, int(get("steps"))

    def work(job: dash_jobs.Job) -> Inputs:
        job.say("reading traces", 0.1)
        routing, other = fit_trace(), None if held is None else held()
        job.say("packing steps", 0.6)
        model = None if dims is None else ModelSpec.preset(dims)
        return _inputs(routing, other, fit, whole(), ranks, model, phase, tokens, steps, network)

    return digest("inputs", fit_name, held_name, whole_name, dims, phase, fit, ranks, network, tokens, steps), work


# --- plans -------------------------------------------------------------------------------------------------------


def plans() -> dict[str, Plan]:
    """Return the plans of this session by name."""
    return st.session_state.plans


def add_plan(name: str, plan: Plan) -> str:
    """Add a plan under a name that is free and return the name; the same plan is not added twice."""
    known = plans()
    for other, there in known.items():
        if there.digest == plan.digest and there.options == plan.options:
            return other
    free, number = name, 2
    while free in known:
        free, number = f"{name} {number}", number + 1
    known[free] = plan
    return free


def look_at(name: str) -> None:
    """Show a plan on every page; before their widgets are drawn."""
    for key in ("looked_at", "sim_plan", "w_plan", "out_plan", "diff_to"):
        st.session_state[key] = name
    st.session_state.w_slots = SHARED["w_slots"]


def await_job(key: str) -> None:
    """Remember a planning job whose plans belong into this session when it ends."""
    if key not in st.session_state.awaited:
        st.session_state.awaited.append(key)


def _collect() -> None:
    state = st.session_state
    for key in list(state.awaited):
        job = dash_jobs.find(key)
        if job is None or job.running:
            continue
        state.awaited.remove(key)
        if job.error:
            state.last_error = f"{job.label}: {job.error}"
            continue
        added = [add_plan(name, plan) for name, plan in job.result.items()]
        if len(added) == 1:
            look_at(added[0])


def running() -> list[dash_jobs.Job]:
    """Return the planning jobs of this session that are not done."""
    found = [dash_jobs.find(key) for key in st.session_state.awaited]
    if any(job is not None and not job.running for job in found):
        st.rerun()  # one ended since this run began: its plans come in first
    return [job for job in found if job is not None and job.running]


def fitting(given: Inputs) -> dict[str, Plan]:
    """Return the plans whose sizes are those of the inputs, by name."""
    spec = given.costs.spec
    wanted = (spec.layers, given.cluster.ranks, spec.experts)
    return {
        name: plan for name, plan in plans().items()
        if (plan.placement.layers, plan.placement.ranks, plan.placement.num_experts) == wanted
    }  # fmt: skip


def judged_key(name: str, plan: Plan, given: Inputs) -> str:
    """Return the name of a judgement: of the plan, of what it is called, and of what it is judged on."""
    return digest("judge", name, plan.digest, given.digest)


def as_plan(thing: Plan | Placement, name: str, given: Inputs, policy: str) -> Plan:
    """Return what was loaded as a plan that fits the inputs.

    Raises
    ------
    InputError
        If it is for another model or other ranks.
    """
    placement = thing.placement if isinstance(thing, Plan) else thing
    spec = given.costs.spec
    found = (placement.layers, placement.ranks, placement.num_experts)
    if found != (wanted := (spec.layers, given.cluster.ranks, spec.experts)):
        raise InputError(
            f"{name}: is for (layers, ranks, experts) {found}, the inputs have {wanted}; load a plan that was made for "
            "this model and this many GPUs, or change the inputs"
        )
    if isinstance(thing, Plan):
        return thing
    return adopt(placement, given.fitted, given.cluster, given.costs, policy=policy, name=name)
