"""The optimizer: baselines and a balanced start, then a search per layer that prices every move as the costs do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.placement import EMPTY, Placement
from moesim.solve.objective import Score, score
from moesim.solve.packing import balance
from moesim.solve.problem import SOLVERS, Problem, takes
from moesim.solve.search.anneal import anneal
from moesim.solve.search.anytime import Anytime
from moesim.solve.search.rows import sample_each, sample_rows
from moesim.solve.search.scale import merging, seconds_per_count, tokens_per_rank
from moesim.solve.search.state import NEAREST, PICK_HASH, ROW_HASH, TOKENS, make_state

BASELINES: Final = ("contiguous", "round-robin", "random", "lpt", "snake", "eplb", "eplb-hierarchical")
"""Placements that the answer is never worse than on the traffic it is fitted to."""

_RATE: Final = 16e6
"""Units of work (rows looked at) that a second of deadline buys, whatever the machine: about half of what one thread of
a current core does. Fixed, so that the answer depends on the deadline and not on cores and their mood."""
WEIGHTS: Final = (1.0, 2.0, 4.0)
"""Weights of compute time that the search tries by default."""
_MOST_WINDOWS: Final = 8
_POLICIES: Final = {"nearest": NEAREST, "hash": ROW_HASH, "uniform": PICK_HASH, "random": PICK_HASH}


@takes(effort=6e7, rows=12000, windows=0, hot=0.01, cold=0.0005, balance=1.0)
def moesim(problem: Problem) -> Array:
    """Return the best placement found, layer by layer.

    Options
    -------
    effort
        Rows that the search may look at in a layer; a deadline can buy less.
    rows, windows
        Tokens of a layer that the search looks at, and the windows whose times it averages, so that a placement that
        is balanced only in the sum of all does not pass. 0: windows of the size of a step.
    hot, cold
        First and last temperature as shares of the starting time.
    balance
        Weight of the compute time: more than 1 trades traffic for balance. 0: the effort is shared by searches with
        the weights `WEIGHTS`; of their placements the fastest that is as balanced as EPLB's is taken, layer by layer.
    """
    candidates = [permitted(problem, one) for one in baseline_candidates(problem)]
    scores = [_score(problem, candidate) for candidate in candidates]
    start = mixed(candidates, scores, values=problem.worth(scores, candidates))
    best_s = min(one.mean_s for one in scores)
    problem.tell("baselines", best_s, 0.0)
    eplb = scores[list(BASELINES).index("eplb")]
    _remark_on_copies(problem)
    weights = [float(problem.options["balance"])] if problem.options["balance"] else WEIGHTS
    found = [
        permitted(problem, Placement(slots, problem.experts)) for slots in improve(problem, start, weights, best_s)
    ]
    reached = [_score(problem, placement) for placement in found]
    least = eplb.balance.mean(axis=0)
    choice = mixed(found, reached, least, problem.worth(reached, found))
    candidates += [*found, Placement(choice, problem.experts)]
    scores += [*reached, _score(problem, candidates[-1])]
    values = [problem.whole_worth(one, placement) for one, placement in zip(scores, candidates, strict=True)]
    if len(weights) > 1 and values[-1] <= min(values[: -len(found) - 1]):
        return choice
    best_layers = mixed(candidates, scores, values=problem.worth(scores, candidates))
    # stragglers that differ from layer to layer can make a whole placement better than the best of each layer
    whole = int(np.argmin(values))
    best = Placement(best_layers, problem.experts)
    return (
        candidates[whole].experts if values[whole] < problem.whole_worth(_score(problem, best), best) else best_layers
    )


def permitted(problem: Problem, placement: Placement) -> Placement:
    """Return a candidate in which the fewest experts move, and that respects the constraints."""
    return Placement(problem.permitted(problem.relabelled(placement).experts), problem.experts)


def _remark_on_copies(problem: Problem) -> None:
    """Note where fewer copies are faster: at small batch every further copy is one more set of weights to read."""
    if problem.limits.strict:
        return
    seconds = {}
    fewest, slots = -(-problem.experts // problem.ranks), problem.slots_per_rank
    for count in sorted({fewest, (fewest + slots) // 2, slots}):
        held = balance(problem.loads, problem.ranks, count, problem.cluster.speed)
        padded = np.pad(held, ((0, 0), (0, 0), (0, slots - count)), constant_values=EMPTY)
        seconds[count] = _score(problem, Placement(padded, problem.experts)).mean_s
    best = min(seconds, key=lambda count: seconds[count])
    if seconds[best] < 0.98 * seconds[slots]:
        less = 1 - seconds[best] / seconds[slots]
        problem.note(
            f"fewer copies are faster here: balanced by load, {best} slots a rank take {less:.0%} less time than "
            f"{slots}; try fewer slots per rank"
        )


def _score(problem: Problem, placement: Placement) -> Score:
    return score(problem.batches, placement, problem.costs, problem.policy, problem.seed)


def mixed(
    candidates: Sequence[Placement],
    scores: Sequence[Score],
    least: Array | None = None,
    values: Array | None = None,
) -> NDArray[np.int32]:
    """Return the fastest candidate of each layer, of those with balance ``least`` [layers] if there are any.

    Where none is balanced enough, the most balanced candidate is the one. ``values`` [candidates, layers] is what is to
    be small, by default the mean time.
    """
    layer_s = np.array([found.layer_s.mean(axis=0) for found in scores]) if values is None else values
    if least is not None:
        balance = np.array([found.balance.mean(axis=0) for found in scores])
        enough = np.minimum(least, balance.max(axis=0))
        layer_s = np.where(balance >= enough, layer_s, np.inf)
    return np.stack([candidates[index].experts[layer] for layer, index in enumerate(layer_s.argmin(axis=0))])


def baseline_candidates(problem: Problem) -> list[Placement]:
    """Return the placements of all baselines that apply here, the balanced one, and the one that runs now."""
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
    placements = [Placement(slots, problem.experts) for slots in experts]
    if problem.previous is not None:
        placements.append(problem.previous)
    if problem.limits.strict:
        placements.append(Placement(problem.start, problem.experts))
    return placements


def improve(
    problem: Problem, experts: NDArray[np.int32], weights: Sequence[float], best_s: float = np.inf
) -> list[NDArray[np.int32]]:
    """Return a placement improved by annealing every layer on its own, in threads, for each weight of compute time."""
    options = problem.options
    count = int(options["rows"])
    step = tokens_per_rank(problem) * problem.ranks
    windows = int(options["windows"]) or min(max(round(count / step), 1), _MOST_WINDOWS)
    rows = sample_each(problem, count) if problem.objective.risk == "cvar" else sample_rows(problem, count, windows)
    mode = merging(problem)
    policy = _POLICIES.get(problem.policy)
    if policy is None:
        problem.note(f"policy {problem.policy!r} is not known to the search: it assumes the nearest copy")
        policy = NEAREST
    scale = seconds_per_count(problem, mode)
    # from counts of a window of the sample to counts of a step
    scale *= step * rows.windows / len(rows.home)
    if problem.objective.aim != "time":
        scale[TOKENS if problem.objective.aim == "traffic" else slice(TOKENS + 1, None)] = 0.0
    allowed = problem.deadline_s * _RATE / problem.layers
    work = int(min(float(options["effort"]), allowed))
    if work < options["effort"]:
        problem.note(f"the deadline bought {work / float(options['effort']):.0%} of the search effort")

    work //= len(weights)
    tasks = [(weight, layer) for weight in weights for layer in range(problem.layers)]

    anytime = Anytime(problem, experts, best_s, len(tasks))

    def one(number: int) -> tuple[Array, bool]:
        weight, layer = tasks[number]
        weighted = scale.copy()
        weighted[TOKENS] *= weight
        state = make_state(
            rows.routes[:, layer], rows.home, rows.window, problem.cluster.node, problem.cluster.landing,
            experts[layer], problem.experts, rows.windows, mode, policy, rows.key,
        )  # fmt: skip
        share = problem.seconds_left() * problem.jobs / (len(tasks) - number)
        outcome = anneal(
            state, weighted, work, hot=float(options["hot"]), cold=float(options["cold"]),
            seed=problem.seed * problem.layers + layer, stop_at=time.monotonic() + share,
            each=lambda done, slots: anytime.follow(number, number // problem.layers, layer, done, slots),
            rules=problem.limits.rules(layer), worst=problem.objective.windows(rows.windows),
        )  # fmt: skip
        return state.slots, outcome.cut

    parallel = Parallel(n_jobs=problem.jobs, backend="threading")
    results = parallel(delayed(one)(number) for number in range(len(tasks)))
    if cut := sum(was_cut for _, was_cut in results):
        problem.note(f"the deadline cut the search short in {cut} of {len(tasks)} runs: another run may differ")
    found = np.stack([slots for slots, _ in results]).astype(np.int32)
    return list(found.reshape(len(weights), *experts.shape))
