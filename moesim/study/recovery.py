"""How much of a re-plan a few moves recover when the traffic has drifted, and when the move has paid off."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.cluster import Cluster
from moesim.solve import Constraints, Plan, solve
from moesim.solve.moving import break_even_s
from moesim.solve.objective import score
from moesim.spec import ModelSpec
from moesim.study.windows import costs_of, steps_of
from moesim.trace import Trace
from moesim.trace.checks import check_seed

BUDGETS: Final = (4, 8, 16, 32)
"""Moves a layer that are tried between staying and a whole re-plan."""


@dataclass(frozen=True)
class Row:
    """One answer to drift, judged on held-out traffic after it.

    Parameters
    ----------
    moves
        Moves that a layer was allowed, None for any number, 0 for staying.
    most_moves_of_a_layer, move_bytes, move_s
        What it took: experts received in the layer that moves most, bytes and seconds of all layers.
    step_s, balance
        Mean seconds of a step; mean over largest load of a rank, mean over steps and layers.
    recovered, balance_recovered
        Part of what the whole re-plan gains over staying, in step time and in balance; None where it gains nothing.
    break_even_s
        Seconds of serving after which the move has paid off, None where it never does.
    """

    moves: int | None
    most_moves_of_a_layer: int
    move_bytes: float
    move_s: float
    step_s: float
    balance: float
    recovered: float | None
    balance_recovered: float | None
    break_even_s: float | None


@dataclass(frozen=True)
class Recovery:
    """What :func:`recover` found: facts of the drift, and rows from staying to the whole re-plan."""

    facts: dict[str, Any]
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with stable keys."""
        return {"schema": 1, **self.facts, "rows": [dataclasses.asdict(row) for row in self.rows]}


def drifted(trace: Trace, share: float, seed: int = 0) -> tuple[Trace, Trace]:
    """Return traffic before and after a drift: the first half of the domains, and a mix with ``share`` of the others.

    Requests go whole to one of the two; the request order is the seed's.

    Raises
    ------
    InputError
        If the trace has one domain or too few requests, or the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise InputError(f"drift: share: expected a part of the later traffic above 0 and at most 1, got {share}")
    if len(np.unique(trace.domain)) < 2:
        raise InputError(f"drift: the trace of {trace.spec.name} has one domain; import it with domains")
    check_seed(seed)
    rng = np.random.default_rng(seed)
    old = _old_domains(trace, trace)
    requests, first = np.unique(trace.request, return_index=True)
    was = old[first]
    order = rng.permutation(len(requests))
    mine = order[was[order]]
    theirs = order[~was[order]]
    size = np.bincount(np.searchsorted(requests, trace.request), minlength=len(requests))
    # of the old domains one half runs before; then as much of the other half and of the new ones as keeps the share
    half = np.searchsorted(np.cumsum(size[mine]), size[mine].sum() / 2)
    rest = mine[half:]
    whole = min(size[theirs].sum() / share, size[rest].sum() / (1 - share) if share < 1 else np.inf)
    after = np.concatenate([_within(theirs, size, share * whole), _within(rest, size, (1 - share) * whole)])
    if not half or not len(after):
        raise InputError(
            f"drift: too few requests of the two sets of domains, {len(mine)} and {len(theirs)}; give a longer trace"
        )
    return (
        trace.select(np.isin(trace.request, requests[mine[:half]])),
        trace.select(np.isin(trace.request, requests[after])),
    )


def _old_domains(whole: Trace, part: Trace) -> Array:
    """Return which tokens of a part are of the first half of the domains, bool [tokens]."""
    held = np.unique(whole.domain)
    return np.isin(part.domain, held[: len(held) // 2])


def _within(requests: Array, size: Array, tokens: float) -> Array:
    """Return the first requests that hold about so many tokens together."""
    return requests[: np.searchsorted(np.cumsum(size[requests]) - size[requests] / 2, tokens)]


def recover(
    trace: Trace,
    cluster: Cluster,
    *,
    slots_per_rank: int,
    share: float = 0.5,
    budgets: Sequence[int] = BUDGETS,
    policy: str = "nearest",
    transport: str | None = None,
    dims: ModelSpec | None = None,
    tokens_per_rank: int | None = None,
    phase: str | None = None,
    seed: int = 0,
    deadline_s: float = 60.0,
    progress: Callable[[str], None] | None = None,
) -> Recovery:
    """Plan before a drift, answer it with different numbers of moves, judge on traffic after it.

    The plan before is fitted to the first half of the domains. After the drift, half of the requests are what planners
    see, the other half judges. See :func:`drifted` for the drift.

    Raises
    ------
    InputError
        If there are no domains to drift between.
    """
    say = progress or (lambda _line: None)
    before, after = drifted(trace, share, seed)
    fit_trace, judge_trace = after.split(0.5, by="request", seed=seed)
    size: dict[str, Any] = {"tokens_per_rank": tokens_per_rank, "phase": phase, "seed": seed}
    old, fitted, judged = (steps_of(part, cluster, **size) for part in (before, fit_trace, judge_trace))
    costs = costs_of(judged, cluster, dims=dims, transport=transport)
    common: dict[str, Any] = {
        "slots_per_rank": slots_per_rank, "policy": policy, "dims": dims, "costs": costs, "seed": seed,
        "deadline_s": deadline_s,
    }  # fmt: skip
    say("planning before the drift")
    running = solve(old, cluster, **common)
    plans: list[tuple[int | None, Plan]] = []
    for budget in [*budgets, None]:
        say(f"planning after it with {_budget(budget)}")
        limits = Constraints(most_moves=budget)
        plans.append((budget, solve(fitted, cluster, previous=running.placement, constraints=limits, **common)))
    say("judging")
    stay = score(judged, running.placement, costs, policy, seed)
    judgements = [score(judged, plan.placement, costs, policy, seed) for _, plan in plans]
    gain = stay.mean_s - judgements[-1].mean_s
    uneven = float(stay.balance.mean())
    evened = float(judgements[-1].balance.mean()) - uneven
    rows = [Row(0, 0, 0.0, 0.0, stay.mean_s, uneven, _part(0.0, gain), _part(0.0, evened), None)]
    for (budget, plan), found in zip(plans, judgements, strict=True):
        move = plan.terms["migration"]
        rows.append(
            Row(
                moves=budget,
                most_moves_of_a_layer=move["most_moves_of_a_layer"],
                move_bytes=move["move_bytes"],
                move_s=move["move_s"],
                step_s=found.mean_s,
                balance=float(found.balance.mean()),
                recovered=_part(stay.mean_s - found.mean_s, gain),
                balance_recovered=_part(float(found.balance.mean()) - uneven, evened),
                break_even_s=break_even_s(move["move_s"], stay.mean_s, found.mean_s, found.model_step_s),
            )
        )
    facts = {
        "model": costs.spec.name,
        "topology": cluster.name,
        "slots_per_rank": slots_per_rank,
        "policy": policy,
        "transport": costs.transport,
        "share": share,
        "drifted": float(1 - _old_domains(trace, after).mean()),
        "tokens_per_rank": judged.tokens_per_rank,
        "tokens": {"before": before.tokens, "fitted": fit_trace.tokens, "judged": judge_trace.tokens},
        "seed": seed,
        "notes": [
            *(f"before {note}" for note in old.notes),
            *(f"fitted {note}" for note in fitted.notes),
            *(f"judged {note}" for note in judged.notes),
            *costs.notes,
            *(f"plan before: {note}" for note in running.doubts),
            *(f"plan with {_budget(budget)}: {note}" for budget, plan in plans for note in plan.doubts),
        ],
    }
    return Recovery(facts, tuple(rows))


def _part(won: float, whole: float) -> float | None:
    return won / whole if whole > 0 else None


def _budget(moves: int | None) -> str:
    return "any number of moves" if moves is None else f"{count(moves, 'move')} a layer"
