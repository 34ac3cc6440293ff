"""serve(): requests arrive, queue, are prefilled and decoded; on simpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.base.version import VERSION
from moesim.simulate.serving.arrivals import Arrivals
from moesim.simulate.serving.ledger import Ledger
from moesim.simulate.serving.model import StepModel
from moesim.simulate.serving.pool import Limits, Pool
from moesim.simulate.serving.report import STEP, ServingReport
from moesim.simulate.serving.schedulers import KNOWS_ROUTING, SCHEDULERS


@dataclass(frozen=True)
class PoolSpec:
    """A pool to serve with.

    Parameters
    ----------
    ranks, model, limits
        Number of ranks, step model, what each rank can take.
    affinity
        Request -> float64 [ranks], for the scheduler ``expert-affinity``.
    """

    ranks: int
    model: StepModel
    limits: Limits = field(default_factory=Limits)
    affinity: Callable[[int], Array] | None = None


@dataclass(frozen=True)
class Change:
    """Something happens to a pool at a time: a failure, a new placement.

    Parameters
    ----------
    at_s
        When; a step that is under way ends first.
    pause_s
        Seconds in which the pool does not step.
    model
        Step model from then on; None keeps the old one.
    lost
        Ranks that are gone; requests that they held begin anew elsewhere.
    pool
        Name of the pool.
    """

    at_s: float
    pause_s: float = 0.0
    model: StepModel | None = None
    lost: Sequence[int] = ()
    pool: str = "all"

    def __post_init__(self) -> None:
        for name in ("at_s", "pause_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"Change.{name}: expected seconds from 0 up, got {value}")


def serve(
    arrivals: Arrivals,
    pool: PoolSpec,
    *,
    decode: PoolSpec | None = None,
    transfer_s: Callable[[int], float] | None = None,
    scheduler: str = "least-loaded",
    changes: Sequence[Change] = (),
    until_s: float | None = None,
    slo_ttft_s: float = 2.0,
    slo_tpot_s: float = 0.1,
    facts: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> ServingReport:
    """Return what becomes of requests.

    Parameters
    ----------
    arrivals
        When they come and how long they are.
    pool
        Who serves them; with ``decode``, only their prompts.
    decode
        Who goes on from the first token (prefill/decode disaggregation). A rank sends one KV cache at a time.
    transfer_s
        Prompt tokens -> seconds that their KV cache is under way.
    scheduler
        Name in ``SCHEDULERS``.
    changes
        Failures and new placements.
    until_s
        Stop then; None: when everything is answered.
    slo_ttft_s, slo_tpot_s
        Limits of a good request: time to first token, time per output token.

    Raises
    ------
    UnknownName
        If there is no such scheduler.
    InputError
        If there is no request, no time to serve them, or a change names no pool or no rank of it.
    """
    choose = SCHEDULERS.get(scheduler)
    if not len(arrivals):
        raise InputError("serve: there is no request; give arrivals")
    if until_s is not None and not until_s > 0:
        raise InputError(f"serve: until_s: expected seconds above 0, got {until_s}")
    env, ledger = simpy.Environment(), Ledger(arrivals)
    names = ("all",) if decode is None else ("prefill", "decode")
    pools: dict[str, Pool] = {}
    seconds = transfer_s or (lambda _tokens: 0.0)

    def build(name: str, spec: PoolSpec, hand_over: Callable[[int], None] | None) -> Pool:
        affinity = spec.affinity or (lambda _request: np.zeros(spec.ranks))
        return Pool(env, name, spec.ranks, spec.limits, spec.model, choose, ledger, affinity, hand_over)

    if decode is None:
        pools["all"] = build("all", pool, None)
    else:
        pools["decode"] = build("decode", decode, None)
        senders = [simpy.Resource(env) for _ in range(pool.ranks)]

        def send(request: int) -> Iterator[Any]:
            with senders[int(pools["prefill"].home[request])].request() as turn:
                yield turn
                yield env.timeout(seconds(int(ledger.prompt[request])))
            pools["decode"].submit(request, full=True)

        pools["prefill"] = build("prefill", pool, lambda request: env.process(send(request)))
    first, last = pools[names[0]], pools[names[-1]]
    longest = arrivals.prompt + arrivals.output
    ledger.rejected[:] = (longest > last.limits.kv_tokens) | (arrivals.prompt > first.limits.kv_tokens)

    def arrive() -> Iterator[Any]:
        for request in np.flatnonzero(~ledger.rejected).tolist():
            wait = float(arrivals.at_s[request]) - env.now
            if wait > 0:
                yield env.timeout(wait)
            first.submit(request)

    def happen(change: Change) -> Iterator[Any]:
        yield env.timeout(change.at_s)
        where = pools[change.pool]

        def act() -> None:
            if change.model is not None:
                where.model = change.model
            if len(change.lost):
                where.lose(np.asarray(change.lost))
            where.paused_until = max(where.paused_until, env.now + change.pause_s)

        where.at_next_step(act)

    env.process(arrive())
    for change in changes:
        if change.pool not in pools:
            raise InputError(f"serve: a change names pool {change.pool!r}; there are {', '.join(pools)}")
        ranks = pools[change.pool].ranks
        if wrong := [rank for rank in change.lost if not 0 <= rank < ranks]:
            raise InputError(f"serve: rank {wrong[0]} cannot be lost; pool {change.pool} has ranks 0 to {ranks - 1}")
        env.process(happen(change))
    env.run(until=until_s)
    busy = {name: pools[name].busy_s for name in names}
    steps = {name: np.array(ledger.steps.get(name, []), dtype=STEP) for name in names}
    said = list(dict.fromkeys([*arrivals.notes, *notes]))
    if scheduler == "expert-affinity":
        said.append(KNOWS_ROUTING)
    ends = [float(part["end_s"][-1]) for part in steps.values() if len(part)]
    return ServingReport(
        facts={
            "moesim": VERSION, "arrivals": arrivals.source, "arrivals_digest": arrivals.digest,
            "scheduler": scheduler, "disaggregated": decode is not None, **(facts or {}),
        },
        arrival_s=arrivals.at_s, first_s=ledger.first_s, finish_s=ledger.finish_s, prompt=arrivals.prompt,
        output=arrivals.output, generated=ledger.generated, recomputed=ledger.recomputed, rejected=ledger.rejected,
        preempted=ledger.preempted, busy_s=busy, steps=steps, span_s=until_s or max(ends, default=0.0),
        slo_ttft_s=slo_ttft_s, slo_tpot_s=slo_tpot_s, notes=tuple(said),
    )  # fmt: skip
