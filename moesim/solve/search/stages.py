"""The stages of the search: every layer annealed on its own, in threads, as it will run.

Policies that are not known here are searched for as if the nearest copy served. For ``token-aware``, and for
``shares``, whose program sends the picks of a token to few nodes and evens out the ranks, a stage counts the fewest
nodes that its rows can visit, and one by nearest copies may come first. Where nodes do not count, and
under ``batch-lp``, the load is shared anew over the ranks for every move; copies are drawn at random under
``batch-lp``, whose program looks at loads and not at where a token is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from moesim.base.arrays import Array
from moesim.base.units import count
from moesim.placement.clock import working_s
from moesim.solve.problem import Problem
from moesim.solve.search.anneal import anneal
from moesim.solve.search.anytime import Anytime
from moesim.solve.search.chance import recorded
from moesim.solve.search.cost import Prices, compute_s, cost, prices
from moesim.solve.search.cover import NODES, PICKS
from moesim.solve.search.rows import Rows, sample_rows
from moesim.solve.search.scale import merging, seconds_per_count, tokens_per_rank
from moesim.solve.search.settle import make_state
from moesim.solve.search.state import COVER, NEAREST, NOTHING, PER_NODE, PICK_HASH, ROW_HASH, TOKENS, State

_SCENARIOS: Final = 16
_SCENARIOS_RAW: Final = 8
_SCENARIOS_LOAD: Final = 64
"""Scenarios by default; where they are not drawn to their mean; and where load alone counts: there they cost little,
and the more the better plans last."""
_RATE: Final = 2.5e8
"""Units of work (rows looked at) that a second of deadline buys, whatever the machine: somewhat less than one thread of
a current core does. Fixed, so that the answer depends on the deadline and not on cores and their mood."""
_POLICIES: Final = {
    "nearest": NEAREST, "sglang": NEAREST, "shares": COVER, "batch-lp": PICK_HASH, "token-aware": COVER,
    "hash": ROW_HASH, "uniform": PICK_HASH, "random": PICK_HASH,
}  # fmt: skip
COVERED: Final = tuple(name for name, how in _POLICIES.items() if how == COVER)
"""Policies that are searched for by the fewest nodes that tokens can visit."""
FLOOR: Final = 1.03
"""Balance to reach by default, over EPLB's: what is just reached where the search looked is a little less elsewhere."""
STEEP: Final = 3.0
"""How much more compute time beyond the floor counts."""
_EASED: Final = {"shares": 0.85, "token-aware": 0.6, "batch-lp": 1.0}
"""Weight of compute time under policies that even out batch by batch what a placement leaves uneven."""
_LATER_HOT: Final = 0.5
"""How warm the search from a further start begins: it is there for what is near that start."""


class Stage:
    """One stage for all layers of a problem."""

    def __init__(
        self, problem: Problem, policy: int, rows: Rows, effort: float, even: float, poured: bool = False
    ) -> None:
        self.problem, self.policy, self.rows = problem, policy, rows
        self.effort, self.even, self.poured = effort, even, poured
        # where only load counts, no move needs a look at rows
        self.mode = NOTHING if problem.objective.aim == "load" else merging(problem)
        scale = seconds_per_count(problem, self.mode)
        # from counts of the sample to counts of a step
        scale[TOKENS + 1 :] *= tokens_per_rank(problem) * problem.ranks / len(rows.home)
        if problem.objective.aim == "traffic":
            scale[TOKENS] = 0.0
        self.scale = scale

    def state(self, layer: int, slots: NDArray[np.int32], rows: int | None = None) -> State:
        """Return the state of a layer, of the first so many rows only."""
        part, cluster = slice(rows), self.problem.cluster
        return make_state(
            self.rows.routes[part, layer], self.rows.home[part], cluster.node, cluster.landing, slots,
            self.rows.demand[:, layer], self.mode, self.policy, share=self.rows.share, key=self.rows.key[part],
            even=self.even, poured=self.poured, unit=self.scale[TOKENS] if self.scale[TOKENS].min() > 0 else None,
        )  # fmt: skip

    def prices(self, layer: int, rival: NDArray[np.int32]) -> Prices:
        """Return prices of a layer whose floor follows from the balance of the rival's placement [ranks, slots]."""
        weight, floor = float(self.problem.options["balance"]), float(self.problem.options["floor"])
        if self.problem.policy in _EASED:
            weight, floor = weight * _EASED[self.problem.policy], 0.0
        worst = self.problem.objective.windows(self.rows.demand.shape[0])
        floor_s = np.inf
        if floor > 0:
            floor_s = compute_s(self.state(layer, rival, 0).load, self.scale, worst) / floor
        return prices(self.scale, weight, floor_s, STEEP * weight if floor > 0 else 0.0, worst)

    def seconds(self, placements: Sequence[NDArray[np.int32]], rival: NDArray[np.int32]) -> Array:
        """Return what the stage makes small, seconds of each placement and layer, float64 [placements, layers]."""
        priced = [self.prices(layer, rival[layer]) for layer in range(self.problem.layers)]
        return np.array([[cost(self.state(layer, slots[layer]), each) for layer, each in enumerate(priced)]
                         for slots in placements])  # fmt: skip


def bought(problem: Problem, searches: int = 1) -> float:
    """Return the work in a layer that each of so many searches may do: the effort, or what the deadline buys of it."""
    return min(float(problem.options["effort"]), problem.deadline_s * _RATE / (problem.layers * searches))


def make_stages(problem: Problem, searches: int) -> list[Stage]:
    """Return the stages, which share the effort that each of so many searches may spend in a layer."""
    options = problem.options
    effort = bought(problem, searches)
    if effort < float(options["effort"]):
        problem.note(f"the deadline bought {effort / float(options['effort']):.0%} of the search effort")
    policy = _POLICIES.get(problem.policy, NEAREST)
    if problem.policy not in _POLICIES:
        problem.note(f"policy {problem.policy!r} is not known to the search: it assumes the nearest copy")
    load_only = problem.objective.aim == "load"
    # which nodes a row visits can be counted for some models and clusters, and is no matter where load alone counts
    covers = (
        policy == COVER
        and not load_only
        and merging(problem) == PER_NODE
        and 1 < problem.cluster.nodes <= NODES
        and problem.spec.top_k <= PICKS
    )
    cover = float(options["cover"]) if covers else 0.0
    if problem.policy in _EASED and float(options["floor"]) not in (0.0, FLOOR):
        problem.note(f"policy {problem.policy!r} evens out every batch by itself: no floor is kept to")
    poured = not covers and problem.objective.aim != "traffic" and problem.policy in _EASED
    # a program that evens out every batch has no floor; parts as uneven as they are leave it more room
    drawn = load_only or not poured
    scenarios = options["scenarios"] or (_SCENARIOS_LOAD if load_only else _SCENARIOS if drawn else _SCENARIOS_RAW)
    doubted = load_only or problem.policy not in _EASED
    rows = sample_rows(problem, int(options["rows"]), int(scenarios), drawn=drawn, doubted=doubted)
    if rows.chance.any():
        problem.note(_chance_note(problem, rows.chance))
    stages = []
    if cover < 1:
        by_copies = NEAREST if policy == COVER else policy
        stages.append(Stage(problem, by_copies, rows, effort * (1 - cover), float(options["even"]), poured))
    if cover > 0:
        stages.append(Stage(problem, COVER, rows, effort * cover, 1.0))
    return stages


def _chance_note(problem: Problem, part: Array) -> str:
    trace = problem.batches[0].trace
    tokens = len(problem.rows)
    requests = len(np.unique(trace.request[problem.rows]))
    held = f"{count(tokens, 'token')}, requests not told apart"
    if recorded(requests, tokens):
        held = count(requests, "request")
    where = "" if part.all() else f" in {int((part > 0).sum())} of {count(problem.layers, 'layer')}"
    return (
        f"few to fit ({held}): {part[part > 0].mean():.0%} of what makes experts uneven is put down to chance{where}, "
        "and the search balances the rest; more requests make plans that hold better"
    )


def improve(
    problem: Problem,
    stages: Sequence[Stage],
    starts: Sequence[NDArray[np.int32]],
    rival: NDArray[np.int32],
    best_s: float = np.inf,
) -> list[NDArray[np.int32]]:
    """Return the placements int32 [layers, ranks, slots] that the stages end with, one after the other.

    Parameters
    ----------
    stages
        From :func:`make_stages`, for as many searches as there are starts.
    starts
        The placements to begin with; each has the effort, or its part of the deadline. The answers of the first one
        come last.
    rival
        The placement whose balance is the floor, EPLB's.
    best_s
        Mean seconds of a step of the best placement at hand.
    """
    each = len(stages) * problem.layers
    anytime = Anytime(problem, starts[0], best_s, len(starts) * each)
    found: list[list[NDArray[np.int32]]] = []
    for number, experts in enumerate(starts):
        reached = []
        for index, stage in enumerate(stages):
            # equal seeds, so that what the first one finds does not depend on whether there are more
            seed = problem.seed * each + index * problem.layers
            experts = _all_layers(
                stage, experts, rival, anytime, number * len(stages) + index, len(starts) * len(stages), seed,
                _LATER_HOT if number else 1.0,
            )  # fmt: skip
            reached.append(experts)
        found.append(reached)
    return [experts for reached in reversed(found) for experts in reached]


def _all_layers(
    stage: Stage, experts: Array, rival: Array, anytime: Anytime, number: int, stages: int, seed: int, warm: float
) -> NDArray[np.int32]:  # fmt: skip
    problem, options = stage.problem, stage.problem.options
    tasks = stages * problem.layers

    def one(layer: int) -> tuple[Array, bool]:
        task = number * problem.layers + layer
        state = stage.state(layer, experts[layer])
        share = problem.seconds_left() * problem.jobs / (tasks - task)
        outcome = anneal(
            state, stage.prices(layer, rival[layer]), int(stage.effort),
            hot=float(options["hot"]) * warm, cold=float(options["cold"]), seed=seed + layer,
            stop_at=working_s() + share,
            each=lambda done, slots: anytime.follow(task, number, layer, done, slots),
            rules=problem.limits.rules(layer),
        )  # fmt: skip
        return state.slots, outcome.cut

    results = Parallel(n_jobs=problem.jobs, backend="threading")(delayed(one)(layer) for layer in range(problem.layers))
    if cut := sum(was_cut for _, was_cut in results):
        problem.note(f"the deadline cut the search short in {cut} of {problem.layers} layers: another run may differ")
    return np.stack([slots for slots, _ in results]).astype(np.int32)
