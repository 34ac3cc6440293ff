"""Which tokens the search looks at, at home where, and the scenarios that balance must hold in."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.base.arrays import Array
from moesim.solve.problem import Problem
from moesim.solve.search.chance import chance
from moesim.trace.kernels import count_picks

_LITTLE: Final = 0.1
"""Part of a layer's unevenness below which chance is left alone: plans are no better for taking it out."""


class Rows(NamedTuple):
    """A sample of the traffic: ``routes`` int16 [rows, layers, picks]; ``home`` int32, ``key`` int64 [rows].

    ``demand`` float64 [scenarios, layers, experts]: picks of a step of all ranks, as each part of the traffic has it,
    drawn to the mean where that is asked for, less uneven by what is chance, and as in unseen traffic;
    ``share`` float64 [ranks]: part of the tokens that live on each rank; ``chance`` float64 [layers]: part of the
    unevenness that was taken out of ``demand``.
    """

    routes: NDArray[np.int16]
    home: NDArray[np.int32]
    key: NDArray[np.int64]
    demand: NDArray[np.float64]
    share: NDArray[np.float64]
    chance: NDArray[np.float64]


def sample_rows(problem: Problem, count: int, scenarios: int, *, drawn: bool = True, doubted: bool = True) -> Rows:
    """Return about ``count`` rows, and what each scenario asks of every expert.

    Every token of the batches is used equally often, give or take one. Homes are dealt anew: which rank a request
    lives on is the scheduler's choice and differs the next time, and a placement fitted to it would not hold.

    Parameters
    ----------
    scenarios
        Scenarios in all, unseen ones included; where they are windows of the problem, these and the unseen ones.
    drawn
        Draw scenarios to their mean, unless they are windows, see :func:`steadied`.
    doubted
        Make every scenario less uneven by what is :func:`~moesim.solve.search.chance.chance`, much where few requests
        are fitted, unless they are windows.
    """
    unseen = problem.unseen_share
    # the objective looks at single windows, or these differ for a reason
    by_window = problem.objective.risk == "cvar" or by_domain(problem)
    scenario = scenario_of(problem, max(round(scenarios * (1 - unseen)), 1), by_window)
    rng = np.random.default_rng([problem.seed, 1])
    trace = problem.batches[0].trace
    token = np.concatenate([window.token for window in problem.batches])
    homes = np.concatenate([window.home for window in problem.batches])
    steps = sum(len(window) for window in problem.batches)
    unique, often = np.unique(token, return_counts=True)
    whole, rest = divmod(count, len(unique))
    times = np.full(len(unique), whole)
    times[np.sort(rng.choice(len(unique), rest, replace=False))] += 1
    rows = np.repeat(unique, times)
    # rows of a home stand together: a move looks at few homes
    rows = rng.permutation(rows)
    home = np.sort(homes)[(np.arange(len(rows)) * len(homes)) // len(rows)].astype(np.int32)
    key = np.empty(len(rows), np.int64)
    for rank in range(problem.ranks):
        mine = np.flatnonzero(home == rank)
        # vLLM hashes the row of a token in its rank's batch
        key[mine] = (rng.permutation(len(mine)) * 2654435769) & 0xFFFFFFFF
    assert trace.routes is not None  # batches have routes
    place = scenario[unique]
    total = np.bincount(place, weights=often)
    demand = np.zeros((len(total), problem.layers, problem.experts))
    for index in range(len(total)):
        for times_seen in np.unique(often[place == index]):
            chosen = unique[(place == index) & (often == times_seen)]
            picks = count_picks(trace.routes[chosen], np.zeros(len(chosen), np.int64), 1, problem.experts)[0]
            demand[index] += times_seen * picks
    demand *= (len(token) / steps / total)[:, None, None]
    seen = demand
    if drawn and not by_window:
        seen = steadied(demand, total, len(unique) / (len(token) / steps))
    taken_out = np.zeros(problem.layers)
    if doubted and not by_window:
        by_chance = chance(trace, unique)
        taken_out = np.where(by_chance < _LITTLE, 0.0, by_chance)
        seen = seen + (seen.mean(axis=2, keepdims=True) - seen) * taken_out[:, None]
    demand = with_unseen(seen, demand, unseen, scenarios, problem.seed)
    share = np.bincount(homes, minlength=problem.ranks) / len(homes)
    return Rows(np.ascontiguousarray(trace.routes[rows]), home, key, demand, share, taken_out)


def steadied(demand: NDArray[np.float64], tokens: Array, steps: float) -> NDArray[np.float64]:
    """Return ``demand`` [scenarios, layers, experts] drawn towards the mean, so that it varies as steps to come will.

    A step of another window as long as this one is off what this one holds in all by the sampling errors of both. One
    of S equal parts is off by S - 1 times the square of one of these errors, which is more where steps are long.

    Parameters
    ----------
    tokens
        Tokens of each scenario [scenarios].
    steps
        Steps that the window would fill without using a token twice.
    """
    if len(demand) < 3:
        return demand
    mean = np.tensordot(tokens / tokens.sum(), demand, 1)
    part = min((max(steps, 1.0) + 1) / (len(demand) - 1), 1.0)
    return np.asarray(mean + np.sqrt(part) * (demand - mean))


def with_unseen(
    seen: NDArray[np.float64], parts: NDArray[np.float64], share: float, count: int, seed: int
) -> NDArray[np.float64]:
    """Return ``seen`` [scenarios, layers, experts] and further scenarios, so that ``share`` of all are unseen ones.

    What one of the ``parts`` [scenarios, layers, experts] asks in a layer is dealt anew among its experts: another kind
    of traffic is as uneven as a part of what was seen (the whole mixes kinds), and nothing tells who is popular in it.
    Few scenarios are repeated until all are about ``count``, for one deal is as good as none.
    """
    if share <= 0:
        return seen
    rng = np.random.default_rng([seed, 2])
    seen = np.tile(seen, (max(round(count * (1 - share) / len(seen)), 1), 1, 1))
    more = max(round(len(seen) * share / (1 - share)), 1)
    dealt = rng.permuted(parts[np.arange(more) % len(parts)], axis=2)
    return np.concatenate([seen, dealt])


def scenario_of(problem: Problem, count: int, by_window: bool) -> NDArray[np.int64]:
    """Return a scenario for every token of the trace, int64 [rows], numbered without gaps over those that ran.

    Scenarios are ``count`` equal runs of tokens in the order in which they ran, so that requests stay together; or,
    ``by_window``, the windows of the problem.
    """
    trace = problem.batches[0].trace
    found = np.zeros(trace.rows, np.int64)
    if by_window:
        for number, window in reversed(list(enumerate(problem.batches))):
            found[window.token] = number
        found[problem.rows] = np.unique(found[problem.rows], return_inverse=True)[1]
        return found
    token = np.concatenate([window.token for window in problem.batches])
    unique, first = np.unique(token, return_index=True)
    order = unique[np.argsort(first, kind="stable")]
    found[order] = np.arange(len(order)) * min(count, len(order)) // len(order)
    return found


def by_domain(problem: Problem) -> bool:
    """Return whether every window of the problem is of one domain, and not all of the same."""
    trace = problem.batches[0].trace
    domains = [np.unique(trace.domain[window.token]) for window in problem.batches]
    return all(len(found) == 1 for found in domains) and len(np.unique(np.concatenate(domains))) > 1
