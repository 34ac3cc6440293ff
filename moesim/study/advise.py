"""Will it pay? What re-placement, more or fewer copies, or another policy would buy here, on held-out traffic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.errors import Infeasible, InputError
from moesim.base.units import count
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.placement import POLICIES, Placement
from moesim.simulate import simulate
from moesim.simulate.inputs import UNKNOWN_FIT, seen_steps
from moesim.solve import Constraints, Plan, solve
from moesim.solve.bounds import step_bound
from moesim.solve.moving import break_even_s
from moesim.solve.objective import Score, score
from moesim.solve.solvers.moesim import SLOW
from moesim.solve.survival import restored_note, standing
from moesim.spec import ModelSpec
from moesim.study.answers import LEAST_GAIN, Option, advised, answers
from moesim.study.budget import Budget
from moesim.study.windows import costs_of, fewest_slots, parts_of, steps_of_parts
from moesim.trace import PHASES, Batches, Trace

FEW_MOVES: Final = 16
"""Moves a layer of the small answer."""
SLOW_STEPS: Final = 2
"""Held-out steps on which policies are judged that take seconds a step, the first."""
_RUNS: Final = 5
"""Searches that take time, among which the deadline is shared."""


@dataclass(frozen=True)
class Advice:
    """What :func:`advise` found.

    Parameters
    ----------
    facts
        What was looked at.
    now
        The placement that runs: its held-out step and what that is made of, its bottleneck, the bound.
    options
        All that was tried.
    answers
        One line a question: placement, eplb, slots, policy.
    regret
        How much longer the re-placed step takes than under a plan that had seen the held-out steps.
    plan
        The re-placement that is advised, at the present number of slots; where nothing is, the re-plan.
    advised
        The name of its option, or None where nothing is advised.
    notes
        What a reader must know.
    """

    facts: dict[str, Any]
    now: dict[str, Any]
    options: tuple[Option, ...]
    answers: dict[str, str]
    regret: float
    plan: Plan = field(repr=False)
    advised: str | None
    notes: tuple[str, ...] = ()

    def best(self, kind: str) -> Option | None:
        """Return the fastest option of a kind."""
        of = [option for option in self.options if option.kind == kind]
        return min(of, key=lambda option: option.step_s, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with stable keys."""
        return {
            "schema": 1,
            **self.facts,
            "now": self.now,
            "answers": self.answers,
            "advised": self.advised,
            "regret": self.regret,
            "options": [dataclasses.asdict(option) for option in self.options],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _Case:
    """What all options share."""

    judged: Batches
    costs: Costs
    policy: str
    seed: int
    horizon_s: float
    stay: Score
    anyway_s: float = 0.0
    """Seconds of moves without which what runs cannot stay."""

    def judge(self, placement: Placement, policy: str, steps: Batches | None = None) -> Score:
        """Return the score on all judged steps, or on some, the first."""
        return score(self.judged if steps is None else steps, placement, self.costs, policy, self.seed)

    def option(
        self, name: str, kind: str, found: Score, policy: str, slots: int, solver: str, plan: Plan | None = None,
        fit_s: float | None = None,
    ) -> Option:  # fmt: skip
        stay_s = self.stay.step_s[: len(found.step_s)]
        saved, now = stay_s - found.step_s, float(stay_s.mean())
        error = float(saved.std(ddof=1) / np.sqrt(len(saved)) / now) if len(saved) > 1 else None
        gain = float(saved.mean() / now)
        move = None if plan is None else plan.terms.get("migration")
        move_s = None if move is None else float(move["move_s"])
        even = None if move_s is None else break_even_s(
            move_s - self.anyway_s, now, found.mean_s, found.model_step_s
        )  # fmt: skip
        in_time = move_s is None or (even is not None and even <= self.horizon_s)
        return Option(
            name=name,
            kind=kind,
            solver=solver,
            policy=policy,
            slots_per_rank=slots,
            engine=POLICIES.get(policy).engine,
            step_s=found.mean_s,
            gain=gain,
            gain_error=error,
            fit_step_s=fit_s,
            balance=float(found.balance.mean()),
            moves=None if move is None else int(move["moves"]),
            move_s=move_s,
            break_even_s=even,
            pays=bool(gain > max(LEAST_GAIN, 2 * (error or 0.0)) and in_time),
        )


def advise(
    trace: Trace,
    cluster: Cluster,
    *,
    slots_per_rank: int,
    previous: Placement | ArrayLike | None = None,
    previous_inputs: Mapping[str, Any] | None = None,
    policy: str = "nearest",
    transport: str | None = None,
    network: str = "bottleneck",
    compute: str = "roofline",
    fit: float = 0.5,
    dims: ModelSpec | None = None,
    tokens_per_rank: int | None = None,
    phase: str | None = None,
    max_steps: int | None = 6,
    horizon_s: float = 600.0,
    seed: int = 0,
    deadline_s: float = 25.0,
    progress: Callable[[str], None] | None = None,
) -> Advice:
    """Return what would pay here: re-placement, more or fewer copies, another policy, or nothing.

    Parameters
    ----------
    trace, cluster
        Traffic, and where it runs.
    slots_per_rank
        Experts that a rank holds in a layer now, C; where a previous placement is given, it says so itself.
    previous
        Placement that runs, or its experts [layers, ranks, slots], of which some may be nowhere since ranks were lost
        and are restored first; by default the one that engines start with, slot p holding expert p modulo E.
    previous_inputs
        As in :func:`moesim.study.compare`.
    policy
        Dispatch policy that runs.
    fit
        Part of the traffic that plans are fitted on; all is judged on the rest.
    max_steps
        Most steps of each part.
    horizon_s
        Seconds of serving in which a move must pay off.
    deadline_s
        Seconds that all searches may take together, compilation aside; judging options takes more.
    transport, network, compute, dims, tokens_per_rank, phase, seed, progress
        As in :func:`moesim.study.compare`.

    Raises
    ------
    InputError
        If parts do not fit one another.
    Infeasible
        If the slots or the memory do not hold the experts.
    """
    say = progress or (lambda _line: None)
    if not horizon_s > 0:
        raise InputError(
            f"advise: horizon: expected more than 0 s of serving in which a move must pay off, got {horizon_s}"
        )
    POLICIES.get(policy)
    say("packing steps")
    size: dict[str, Any] = {"tokens_per_rank": tokens_per_rank, "phase": phase, "max_steps": max_steps, "seed": seed}
    fit_trace, judge_trace = parts_of(trace, None, fit=fit, seed=seed)
    fitted, judged = steps_of_parts(fit_trace, judge_trace, cluster, **size)
    costs = costs_of(judged, cluster, dims=dims, transport=transport, network=network, compute=compute)
    if not deadline_s > 0:
        raise InputError(f"advise: deadline: expected more than 0 s for all searches together, got {deadline_s}")
    budget = Budget(deadline_s, _RUNS)

    def plan_for(steps: Batches, held: int, solver: str = "moesim", **more: Any) -> Plan:
        how: dict[str, Any] = {
            "slots_per_rank": held, "solver": solver, "policy": policy, "dims": dims, "costs": costs, "seed": seed,
            "deadline_s": budget.share, **more,
        }  # fmt: skip
        if solver != "moesim":
            return solve(steps, cluster, **how)
        with budget.part() as stop:
            return solve(steps, cluster, stop=stop, **how)

    notes = []
    nothing_runs = previous is None
    if previous is None:
        previous = plan_for(fitted, slots_per_rank, "contiguous").placement
        notes.append("nothing runs that was given: compared with the placement that engines start with (contiguous)")
    stay, restoring = standing(previous, fitted, costs, slots_per_rank)
    if restoring is not None:
        notes.append(f"what runs: {restored_note(restoring)}")
    slots = stay.slots_per_rank
    say("judging what runs")
    case = _Case(
        judged, costs, policy, seed, horizon_s, score(judged, stay, costs, policy, seed),
        0.0 if restoring is None else restoring.seconds,
    )  # fmt: skip
    report = simulate(judged, cluster, stay, policy=policy, dims=dims, costs=costs, seed=seed)
    bound_s = step_bound(judged, cluster, costs, slots).step_s

    options: list[Option] = []
    plans: dict[str, Plan] = {}
    for name, solver, limits in (
        ("eplb", "eplb", None),
        (f"{FEW_MOVES} moves a layer", "moesim", Constraints(most_moves=FEW_MOVES)),
        ("re-plan", "moesim", None),
    ):
        say(f"trying {name}")
        try:
            plan = plans[name] = plan_for(fitted, slots, solver, constraints=limits, previous=previous)
        except Infeasible as error:
            if limits is None:
                raise
            notes.append(f"{name}: {error}")  # more experts are nowhere than may move
            continue
        found = case.judge(plan.placement, policy)
        options.append(case.option(name, "placement", found, policy, slots, solver, plan, plan.score_s))
    fastest = min(options, key=lambda option: option.step_s).name
    best = plans[fastest].placement
    fewest = fewest_slots(trace.spec.experts, cluster.ranks)
    for number in (slots - 1, slots + 1):
        if number < fewest or number > trace.spec.experts:
            continue
        named = f"{count(number, 'slot')} a rank"
        say(f"trying {named}")
        try:
            plan = plan_for(fitted, number)
        except Infeasible as error:
            notes.append(f"{named}: {error}")
            continue
        found = case.judge(plan.placement, policy)
        options.append(case.option(named, "slots", found, policy, number, "moesim", None, plan.score_s))
    few, slow = judged.take(slice(0, SLOW_STEPS)), []
    for name in POLICIES.names():
        if name in (policy, "random"):
            continue  # `random` is what `uniform` is the mean of
        say(f"trying policy {name}")
        steps = few if name in SLOW and len(few) < len(judged) else judged
        slow += [name] if steps is few else []
        for where, placement in (("stay", stay), (fastest, best)):
            found = case.judge(placement, name, steps)
            options.append(case.option(f"{name}, {where}", "policy", found, name, slots, where))
    of_few: dict[str, float] = {}
    if slow:
        # some steps gain more than others, so that what was judged on a few is compared on the same
        found = case.judge(best, policy, few)
        of_few = dict.fromkeys(slow, case.option(fastest, "placement", found, policy, slots, fastest).gain)
    say("planning on the held-out steps, to tell the regret")
    # the fastest re-placement is a candidate, so that no layer alone is worse; the whole may be by a little
    knowing_s = min(
        plan_for(judged, slots, previous=best).score_s, *(o.step_s for o in options if o.kind == "placement")
    )
    replanned = next(option for option in options if option.name == "re-plan")
    facts = {
        "trace": {"model": trace.spec.name, "tokens": trace.tokens, "digest": trace.digest},
        "topology": {"name": cluster.name, "ranks": cluster.ranks, "nodes": cluster.nodes, "digest": cluster.digest},
        "settings": {
            "model": costs.spec.name, "slots_per_rank": slots, "policy": policy, "transport": costs.transport,
            "phase": PHASES[int(judged.phase[0])], "tokens_per_rank": judged.tokens_per_rank,
            "fit_steps": len(fitted), "held_out_steps": len(judged), "horizon_s": horizon_s, "seed": seed,
        },
    }  # fmt: skip
    now = {
        "step_s": case.stay.mean_s,
        "worst_step_s": float(case.stay.step_s.max()),
        "all_to_all_s": report.all_to_all_s,
        "compute_s": report.compute_s,
        "balance": float(case.stay.balance.mean()),
        "bound_s": bound_s,
        "bottleneck": report.bottleneck,
    }
    if slow:
        notes.append(f"judged on the first {SLOW_STEPS} held-out steps alone, as they take long: {', '.join(slow)}")
    if len(judged) < 2:
        notes.append("one held-out step: how much gains differ between steps is not known; give fewer tokens a rank")
    if budget.cut:
        notes.append(f"the deadline cut {budget.cut} of {_RUNS} searches short: another run may differ; give more time")
    if previous_inputs is not None:
        seen, remark = seen_steps(judged, previous_inputs)
        if seen.any():
            remark = f"what runs was fitted on tokens of {int(seen.sum())} of {count(len(judged), 'held-out step')}"
        notes += [remark] if remark else []
    # nor was what engines start with fitted on anything
    known = previous_inputs is not None or nothing_runs
    notes += [f"held-out steps {note}" for note in judged.notes]
    notes += [note for note in report.notes if note != UNKNOWN_FIT or not known]
    choice = advised(options)
    return Advice(
        facts=facts,
        now=now,
        options=tuple(options),
        answers=answers(options, policy, slots, of_few),
        regret=replanned.step_s / knowing_s - 1,
        plan=plans["re-plan" if choice is None else choice.name],
        advised=None if choice is None else choice.name,
        notes=tuple(dict.fromkeys(note for note in notes if note not in judged.notes)),
    )
