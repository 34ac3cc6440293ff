"""Prefill and decode side by side: a plan for each phase, and what the plan of one costs in the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moesim.base.errors import InputError
from moesim.cluster import Cluster
from moesim.placement import migration
from moesim.solve import Plan, solve
from moesim.solve.objective import score
from moesim.spec import ModelSpec
from moesim.study.windows import costs_of, part_of, steps_of
from moesim.trace import PHASES, Trace


@dataclass(frozen=True)
class PhaseRow:
    """One phase under the plan of one phase, on held-out steps.

    Parameters
    ----------
    phase, plan
        What runs, and for which phase its placement was planned.
    policy, transport, tokens_per_rank
        How the phase runs.
    step_s, slower
        Mean seconds of a step, and how much more that is than under the phase's own plan.
    balance
        Mean over largest load of a rank, step by step.
    """

    phase: str
    plan: str
    policy: str
    transport: str
    tokens_per_rank: int | None
    step_s: float
    slower: float
    balance: float


@dataclass(frozen=True)
class Phases:
    """What :func:`side_by_side` found: a plan a phase, every phase under every plan, and what parts the plans.

    Notes are what a reader must know before trusting the numbers, such as steps that draw tokens again and again.
    """

    facts: Mapping[str, Any]
    rows: tuple[PhaseRow, ...]
    plans: Mapping[str, Plan] = field(repr=False)
    moves: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with stable keys."""
        return {
            "schema": 1,
            **self.facts,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "moves": dict(self.moves),
            "notes": list(self.notes),
        }


def side_by_side(
    trace: Trace,
    cluster: Cluster,
    *,
    slots_per_rank: int,
    policies: Mapping[str, str] | None = None,
    tokens_per_rank: Mapping[str, int] | None = None,
    dims: ModelSpec | None = None,
    fit: float = 0.5,
    max_steps: int | None = None,
    seed: int = 0,
    deadline_s: float = 60.0,
    progress: Callable[[str], None] | None = None,
) -> Phases:
    """Plan for every phase that a trace holds and judge every phase under every plan.

    Each phase runs as engines run it: its own transport (``direct`` in decode, ``hierarchical`` else), tokens a rank
    and dispatch policy.

    Parameters
    ----------
    policies, tokens_per_rank
        By name of the phase; ``nearest`` and the usual sizes where nothing is given.

    Raises
    ------
    InputError
        If the trace holds one phase only.
    """
    say = progress or (lambda _line: None)
    names = [PHASES[int(code)] for code in np.unique(trace.phase)]
    if len(names) < 2:
        there = f"{names[0]} only" if names else "no token"
        raise InputError(f"phases: the trace holds {there}; give one that holds prefill and decode")
    for name in tokens_per_rank or {}:
        if name not in names:
            raise InputError(f"phases: the trace holds no {name} tokens; leave out their number a rank")
    fit_trace, judge_trace = (part_of(trace, part, fit=fit, seed=seed) for part in ("fit", "held-out"))
    plans: dict[str, Plan] = {}
    judged, costs, runs = {}, {}, {}
    notes: list[str] = []
    for name in names:
        size: dict[str, Any] = {
            "tokens_per_rank": (tokens_per_rank or {}).get(name), "phase": name, "max_steps": max_steps, "seed": seed,
        }  # fmt: skip
        fitted, judged[name] = (steps_of(part, cluster, **size) for part in (fit_trace, judge_trace))
        costs[name] = costs_of(judged[name], cluster, dims=dims)
        notes += [f"{name}, fit steps {note}" for note in fitted.notes]
        notes += [f"{name}, held-out steps {note}" for note in judged[name].notes]
        runs[name] = (policies or {}).get(name, "nearest")
        say(f"planning for {name}")
        plans[name] = solve(
            fitted, cluster, slots_per_rank=slots_per_rank, policy=runs[name], dims=dims, costs=costs[name], seed=seed,
            deadline_s=deadline_s,
        )  # fmt: skip
        notes += [f"plan for {name}: {note}" for note in plans[name].doubts]
    rows = []
    for name in names:
        found = {plan: score(judged[name], plans[plan].placement, costs[name], runs[name], seed) for plan in names}
        rows += [
            PhaseRow(
                phase=name,
                plan=plan,
                policy=runs[name],
                transport=costs[name].transport,
                tokens_per_rank=judged[name].tokens_per_rank,
                step_s=found[plan].mean_s,
                slower=found[plan].mean_s / found[name].mean_s - 1,
                balance=float(found[plan].balance.mean()),
            )
            for plan in names
        ]
    first = plans[names[0]].placement
    moves = {name: len(migration(first, plans[name].placement, cluster.node)) for name in names[1:]}
    facts = {
        "model": next(iter(costs.values())).spec.name,
        "topology": cluster.name,
        "slots_per_rank": slots_per_rank,
        "seed": seed,
    }
    notes += [note for one in costs.values() for note in one.notes]
    return Phases(facts, tuple(rows), plans, moves, tuple(dict.fromkeys(notes)))
