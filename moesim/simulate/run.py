"""simulate(): replay steps of a trace on a cluster under a placement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from moesim.base.errors import InputError, UnknownName
from moesim.cluster import Cluster, Deployment
from moesim.costs import Costs
from moesim.simulate.closed import has_closed_form, run_closed_form
from moesim.simulate.engine import run_events
from moesim.simulate.inputs import prepare
from moesim.simulate.loads import Loader
from moesim.simulate.reference import run_reference
from moesim.simulate.report import Report
from moesim.simulate.schedules import Schedule
from moesim.simulate.tally import Tally
from moesim.simulate.training import Training
from moesim.simulate.work import Timeline, Work
from moesim.spec import ModelSpec
from moesim.trace import Batches, Trace

ENGINES: Final[dict[str, Callable[[Work, Schedule], Timeline]]] = {
    "events": run_events,
    "closed-form": run_closed_form,
    "reference": run_reference,
}
"""Engines by name: simpy over vectors of ranks, formula, a simpy process for every rank (slow, for tests)."""


OPTIONS: Final[dict[str, Any]] = {
    "policy": None, "transport": None, "network": None, "schedule": None, "dims": None, "costs": None, "seed": 0,
    "jitter": 0.0, "training": None,
}  # fmt: skip
"""Options that do not depend on how a trace is read, and their defaults."""


def engine_of(name: str | None, schedule: Schedule) -> tuple[str, Callable[[Work, Schedule], Timeline]]:
    """Return an engine and its name; by default the closed form where the schedule has one.

    Raises
    ------
    UnknownName
        If there is no engine of that name.
    """
    if name is None:
        name = "closed-form" if has_closed_form(schedule) else "events"
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)
    return name, ENGINES[name]


def simulate(
    trace: Trace | Batches,
    cluster: Cluster,
    plan: Any,
    *,
    policy: str | None = None,
    transport: str | None = None,
    network: str | None = None,
    schedule: str | Schedule | None = None,
    deployment: Deployment | None = None,
    dims: ModelSpec | None = None,
    tokens_per_rank: int | Mapping[int, int] | None = None,
    phase: str | None = None,
    costs: Costs | None = None,
    engine: str | None = None,
    spans: bool | Sequence[int] = False,
    max_steps: int | None = None,
    seed: int = 0,
    jitter: float = 0.0,
    training: Training | None = None,
) -> Report:
    """Return what the steps of a trace cost on a cluster under a placement.

    Parameters
    ----------
    trace
        Tokens to replay, or batches made of them.
    cluster
        The GPUs and links.
    plan
        A placement, or anything with ``placement``, ``policy``, ``transport`` and ``inputs``, such as a Plan.
    policy, transport
        Dispatch policy and transport; by default the plan's, else ``"nearest"`` and ``"hierarchical"``.
    network
        Network model; ``"bottleneck"`` by default.
    schedule
        How phases share the streams of a rank: ``"sequential"``, ``"shared-overlap"``, ``"two-batch"``, or one of
        your own. By default as the costs say of the shared expert.
    deployment
        Which ranks of the cluster form the expert-parallel group; all by default.
    dims
        Model at whose dimensions the routing is replayed.
    tokens_per_rank, phase, max_steps
        How a trace is batched, see :func:`moesim.trace.make_batches`.
    costs
        Costs to use instead of the default ones for transport and network.
    engine
        ``"events"``, ``"closed-form"`` or ``"reference"``; the same numbers, at different speeds. By default the closed
        form where the schedule has one, else events.
    spans
        Whether to keep the interval of every phase on every rank: of all steps, or of those listed.
    seed
        For batching, for policies that draw and for jitter.
    jitter
        Coefficient of variation of the time of every compute phase on every rank, 0 to 1.
    training
        Adds the backward pass, and drops picks beyond an expert's capacity.

    Raises
    ------
    InputError
        If the parts do not fit one another, or the engine cannot run the schedule.
    UnknownName
        If there is no engine, policy, transport, network, schedule or phase of that name.
    """
    if engine is not None and engine not in ENGINES:
        raise UnknownName("engine", engine, ENGINES)
    setup = prepare(
        trace,
        cluster,
        plan,
        policy=policy,
        transport=transport,
        network=network,
        schedule=schedule,
        deployment=deployment,
        dims=dims,
        tokens_per_rank=tokens_per_rank,
        phase=phase,
        costs=costs,
        max_steps=max_steps,
        seed=seed,
        jitter=jitter,
        training=training,
    )
    steps = len(setup.batches)
    wanted = set(range(steps)) if spans is True else {int(step) for step in spans or ()}
    if wanted and not wanted <= set(range(steps)):
        raise InputError(f"simulate: spans of step {max(wanted)} wanted, there are steps 0 to {steps - 1}")
    name, run = engine_of(engine, setup.schedule)
    loader, tally = Loader(setup), Tally(setup, name)
    for step in range(steps):
        load = loader.load(step)
        tally.add(step, load, run(load.work, setup.schedule), spans=step in wanted)
    return tally.report()
