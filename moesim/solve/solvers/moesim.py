"""The optimizer: baselines and a balanced start, then a search per layer that prices every move as the costs do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.placement import Placement
from moesim.solve.budget import widened
from moesim.solve.conform import conform
from moesim.solve.packing import balance
from moesim.solve.problem import SOLVERS, Problem, takes
from moesim.solve.search.partition import together
from moesim.solve.search.stages import COVERED, FLOOR, bought, improve, make_stages

BASELINES: Final = ("contiguous", "round-robin", "random", "lpt", "snake", "eplb", "eplb-hierarchical")
"""Placements that the answer is never worse than on the traffic it is fitted to, unless unseen traffic counts too."""
SLOW: Final = ("token-aware", "shares", "batch-lp", "fewest-active")
"""Policies that take a second a layer to run: of the baselines they run EPLB's and the two that are fastest under the
nearest copy."""

HURRIED: Final = 3e7
"""Work of a layer up to which the search begins better at a grouped placement; more of it forgets where it began,
unless the policy is one of `COVERED`."""
GROUPED: Final = 50_000
"""Most tokens whose picks are grouped: pairs of experts are counted well by fewer."""


@takes(effort=6e8, rows=12000, scenarios=0, hot=0.003, cold=0.0002, balance=1.0, floor=FLOOR, even=0.0, cover=1.0)
def moesim(problem: Problem) -> Array:
    """Return the best placement found, layer by layer.

    Options
    -------
    effort
        Work of the search in a layer, in rows looked at; a deadline can buy less.
    rows
        Tokens of a layer whose copies the search counts.
    scenarios
        Equal runs of the traffic over which the time of the fullest rank is averaged, so that a placement
        that is balanced only in the sum of all does not pass; 0: 16, or 64 where load alone counts. They are drawn to
        their mean, so that they vary as a step does; not for time under ``batch-lp``, and under ``shares`` and
        ``token-aware`` where nodes do not count: there they stay as they are, 8 by default. Unseen ones of the
        objective are among them. Windows by domain, and those of an objective that looks at single ones, are
        scenarios themselves, as they are.
    hot, cold
        First and last temperature as shares of the starting time.
    balance
        Weight of the compute time: more than 1 trades traffic for balance.
    floor
        Balance to reach in every layer, as a multiple of that of EPLB's placement in the same scenarios: compute time
        beyond counts four times. 0: only the step time counts. Policies that even out every batch by themselves
        (``shares``, ``batch-lp``, ``token-aware``) need none and have none.
    even
        Part of the work that copies are taken to share evenly, whoever is nearest; of no effect where copies are drawn,
        hashed or shared anew.
    cover
        Under ``token-aware`` and ``shares``, part of the effort that looks at the fewest nodes which tokens can visit,
        the rest going before it to nearest copies; 0: nearest copies only.
    """
    every = [permitted(problem, one) for one in baseline_candidates(problem)]
    rival = every[list(BASELINES).index("eplb")]
    candidates = screened(problem, every, rival) if problem.policy in SLOW else every
    scores = [problem.score(candidate) for candidate in candidates]
    worth = problem.worth(scores, candidates)
    starts = [mixed(candidates, worth)]
    if problem.running is not None and problem.limits.most is None:
        # what runs is hard to leave where it is good, and a few moves from it there may be what is found nowhere else
        fresh = len(candidates) - (problem.previous is not None) - problem.limits.strict
        starts = [mixed(candidates[:fresh], worth[:fresh]), problem.start]
    best_s = min(one.mean_s for one in scores)
    problem.tell("baselines", best_s, 0.0)
    _remark_on_copies(problem)
    stages = make_stages(problem, len(starts))
    reached = improve(problem, stages, starts, rival.experts, best_s)
    found = [permitted(problem, Placement(slots, problem.experts)) for slots in reached]
    if len(starts) > 1:
        # renumbered ranks save moves, but whose tokens are near changes with them
        found += [Placement(problem.permitted(slots), problem.experts) for slots in reached]
    candidates += found
    if problem.unseen_share > 0:
        # what was seen does not tell what is good for traffic that was not
        problem.note(
            f"planned for unseen traffic too: {problem.unseen_share:.0%} of what balance is averaged over has its "
            "popularity dealt anew; the traffic it is fitted to may be less balanced for it (choose with unseen)"
        )
        seconds = stages[-1].seconds([one.experts for one in candidates], rival.experts)
        return mixed(candidates, problem.worth_of(seconds, candidates))
    scores += [problem.score(placement) for placement in found]
    values = [problem.whole_worth(one, placement) for one, placement in zip(scores, candidates, strict=True)]
    if len(starts) == 1 and values[-1] <= min(values):
        # every layer of it is as balanced as asked for: a faster layer from elsewhere might not be
        return candidates[-1].experts
    best_layers = mixed(candidates, problem.worth(scores, candidates))
    # stragglers that differ from layer to layer can make a whole placement better than the best of each layer
    whole = int(np.argmin(values))
    best = Placement(best_layers, problem.experts)
    return candidates[whole].experts if values[whole] < problem.whole_worth(problem.score(best), best) else best_layers


def screened(problem: Problem, candidates: Sequence[Placement], rival: Placement) -> list[Placement]:
    """Return the rival, the two fastest candidates under the nearest copy, and those beyond the baselines."""
    quick = [problem.score(one, "nearest").mean_s for one in candidates[: len(BASELINES)]]
    kept = [rival, *(candidates[index] for index in np.argsort(quick)[:2])]
    return [*dict.fromkeys(kept), *candidates[len(BASELINES) :]]


def permitted(problem: Problem, placement: Placement) -> Placement:
    """Return a candidate in which the fewest experts move, and that respects the constraints."""
    return Placement(problem.permitted(problem.relabelled(placement).experts), problem.experts)


def _remark_on_copies(problem: Problem) -> None:
    """Note where fewer copies are faster: at small batch every further copy is one more set of weights to read."""
    if problem.limits.strict:
        return
    seconds = {}
    fewest, slots = -(-problem.experts // problem.ranks), problem.slots_per_rank
    for each in sorted({fewest, (fewest + slots) // 2, slots}):
        held = balance(problem.loads, problem.ranks, each, problem.cluster.speed)
        quick = "nearest" if problem.policy in SLOW else None
        seconds[each] = problem.score(Placement(widened(held, slots), problem.experts), quick).mean_s
    best = min(seconds, key=lambda each: seconds[each])
    if seconds[best] < 0.98 * seconds[slots]:
        less = 1 - seconds[best] / seconds[slots]
        problem.note(
            f"fewer copies are faster here: balanced by load, a step with {count(best, 'slot')} a rank instead of "
            f"{slots} takes {less:.0%} less time; try fewer slots per rank"
        )


def mixed(candidates: Sequence[Placement], worth: Array) -> NDArray[np.int32]:
    """Return the best candidate of each layer by ``worth`` float64 [candidates, layers], the least."""
    return np.stack([candidates[index].experts[layer] for layer, index in enumerate(worth.argmin(axis=0))])


def baseline_candidates(problem: Problem) -> list[Placement]:
    """Return the placements of all baselines that apply here, the balanced one, the grouped one, and what runs now."""
    experts = []
    for name in BASELINES:
        # the baselines' own remarks say nothing about this plan
        silent = [*problem.notes]
        try:
            experts.append(SOLVERS.get(name)(problem))
        except InputError:
            continue  # a hierarchy that does not divide is no candidate
        finally:
            problem.notes[:] = silent
    experts.append(balance(problem.loads, problem.ranks, problem.slots_per_rank, problem.cluster.speed))
    grouped = bought(problem) <= HURRIED or problem.policy in COVERED
    if problem.cluster.nodes > 1 and problem.limits.most is None and grouped:
        experts.append(picked_together(problem))
    placements = [Placement(slots, problem.experts) for slots in experts]
    if problem.previous is not None:
        placements.append(problem.previous)
    if problem.limits.strict:
        if problem.limits.most:
            # as much of EPLB's answer as the budget allows: a start that single moves may not find
            eplb = problem.relabelled(placements[list(BASELINES).index("eplb")]).experts
            inside, _ = conform(eplb, problem.limits, problem.loads, jobs=problem.jobs)
            placements.append(Placement(inside, problem.experts))
        placements.append(Placement(problem.start, problem.experts))
    return placements


def picked_together(problem: Problem) -> NDArray[np.int32]:
    """Return a placement with experts that tokens pick together on the same nodes, as the constraints allow."""
    trace = problem.batches[0].trace
    token = problem.rows
    assert trace.routes is not None  # batches have routes
    found = together(
        trace.routes[token[:: -(-len(token) // GROUPED)]], problem.loads, problem.cluster.node, problem.slots_per_rank,
        speed=problem.cluster.speed, seed=problem.seed,
    )  # fmt: skip
    if problem.limits.strict:
        found, _ = conform(found, problem.limits, problem.loads, jobs=problem.jobs)
    return found
