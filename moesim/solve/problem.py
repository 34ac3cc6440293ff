"""What a solver is given: the cluster, the traffic to fit, the costs and the limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.base.arrays import Array
from moesim.base.errors import InputError, UnknownName
from moesim.base.registry import Registry
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.placement import Placement
from moesim.placement.clock import working_s
from moesim.placement.rounds import keep_slots, schedule
from moesim.solve.conform import conform, seated
from moesim.solve.constraints import Constraints
from moesim.solve.limits import Limits, holders, limits_of
from moesim.solve.loads import count_loads
from moesim.solve.moving import Move, price
from moesim.solve.objective import Objective, Score, score
from moesim.solve.packing import balance
from moesim.solve.progress import Progress, Stop, Watcher
from moesim.solve.relabel import relabel
from moesim.spec import ModelSpec
from moesim.trace.batching import Batches


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that a solver may look at.

    Parameters
    ----------
    spec
        The model, at the dimensions that are costed.
    cluster
        The ranks of the expert-parallel group.
    batches
        Windows of the traffic to fit, each a run of consecutive steps.
    slots_per_rank
        Experts that a rank can hold in a layer, C.
    costs
        What turns counts into seconds, transport included.
    policy
        Dispatch policy that will run.
    previous
        Placement that runs now, if any.
    running
        The same as an array [layers, ranks, slots]; experts may be nowhere in it, when ranks were lost.
    horizon_s
        Seconds of serving in which a move must pay off; infinite: moves cost nothing.
    room
        Slots that each rank may fill, int64 [layers, ranks]; by default as the constraints say.
    seed, deadline_s
        Source of all randomness, and seconds that the solver may use, compilation aside.
    jobs
        Threads that the solver may use.
    options
        Options of the solver, complete.
    objective, constraints
        What the plan is to make small, and what it must respect; ``limits`` holds the latter as arrays.
    notes
        The solver appends what a reader of the plan must know.
    watch, stop
        Who is told of progress, and asked whether to stop; solvers use :meth:`tell` and :meth:`seconds_left`.
    """

    spec: ModelSpec
    cluster: Cluster
    batches: tuple[Batches, ...]
    slots_per_rank: int
    costs: Costs
    policy: str = "nearest"
    previous: Placement | None = None
    running: Array | None = None
    horizon_s: float = math.inf
    room: Array | None = None
    seed: int = 0
    deadline_s: float = 60.0
    jobs: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    objective: Objective = field(default_factory=Objective)
    constraints: Constraints = field(default_factory=Constraints)
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=working_s)
    watch: Watcher | None = None
    stop: Stop | None = None

    @property
    def ranks(self) -> int:
        """Number of ranks, R."""
        return self.cluster.ranks

    @property
    def layers(self) -> int:
        """Number of MoE layers, L."""
        return self.spec.layers

    @property
    def experts(self) -> int:
        """Number of experts of a layer, E."""
        return self.spec.experts

    @cached_property
    def window_loads(self) -> NDArray[np.float64]:
        """Picks of each expert in each window, float64 [windows, layers, experts]."""
        return np.stack([count_loads(window) for window in self.batches])

    @cached_property
    def loads(self) -> NDArray[np.float64]:
        """Picks of each expert, float64 [layers, experts]."""
        return np.asarray(self.window_loads.sum(axis=0))

    @cached_property
    def unseen_share(self) -> float:
        """Share of unseen traffic in what a search balances, see :meth:`Objective.unseen_share`."""
        trace = self.batches[0].trace
        held = {int(code) for window in self.batches for code in np.unique(trace.domain[window.token])}
        return self.objective.unseen_share(len(held), len(trace.domains))

    @cached_property
    def limits(self) -> Limits:
        """The constraints as arrays; raises where they are proven impossible."""
        return limits_of(
            self.constraints, self.loads, self.cluster.node, self.slots_per_rank, self.spec.expert_bytes,
            self.running, self.room,
        )  # fmt: skip

    @cached_property
    def start(self) -> Array:
        """A placement that respects the constraints, as like the running one, or else a balanced one, as can be."""
        if self.running is not None:
            wanted = self.running
        else:
            wanted = balance(self.loads, self.ranks, self.slots_per_rank, self.cluster.speed)
        return conform(wanted, self.limits, self.loads, jobs=self.jobs)[0]

    def permitted(self, experts: Array) -> Array:
        """Return a placement in which layers that break a constraint are those of ``start``."""
        if not self.limits.strict:
            return experts
        bad = self.limits.breaking(experts) | (holders(experts, self.experts).any(axis=2).sum(axis=1) < self.experts)
        kept = np.where(bad[:, None, None], self.start, experts)
        # the search fills the first slots of a rank and leaves the others alone
        return seated(holders(kept, self.experts), kept, self.limits.room)

    def worth(self, scores: Sequence[Score], placements: Sequence[Placement]) -> Array:
        """Return what is to be small, seconds a step of each placement and layer, float64 [placements, layers].

        The objective, the price of hot experts that are not spread, and what the move costs over the horizon.
        """
        return self.worth_of([self.objective.layer_values(score) for score in scores], placements)

    def worth_of(self, seconds: Sequence[Array] | Array, placements: Sequence[Placement]) -> Array:
        """Return the same where the objective comes to ``seconds`` [placements, layers]."""
        return np.array([self._layers(each, placed) for each, placed in zip(seconds, placements, strict=True)])

    def whole_worth(self, score: Score, placement: Placement) -> float:
        """Return the same for a whole placement, ranks running ahead and lagging from layer to layer."""
        alone = self.objective.layer_values(score)
        extra = self._layers(alone, placement) - alone
        return self.objective.value(score) + float(extra.sum())

    def _layers(self, seconds: Array, placement: Placement) -> Array:
        limits = self.limits
        if limits.hot.size and not limits.hard:
            lonely = (~limits.spread(placement.has)).sum(axis=1)
            seconds = seconds * (1 + limits.price * lonely)
        if self.running is not None and np.isfinite(self.horizon_s):
            # seconds of moving for each second served, until the horizon
            seconds = seconds + self.move(placement).layer_s * (self.stay.model_step_s / self.horizon_s)
        return seconds

    @cached_property
    def rows(self) -> Array:
        """Rows of the trace that its steps hold, each once, ascending [rows]."""
        return np.unique(np.concatenate([window.token for window in self.batches]))

    @cached_property
    def stay(self) -> Score:
        """The score if nothing moves, or as little as must."""
        return self.score(self.previous or Placement(self.start, self.experts))

    def score(self, placement: Placement, policy: str | None = None) -> Score:
        """Return the score of a placement on the traffic to fit, under another policy than the problem's if named."""
        return score(self.batches, placement, self.costs, policy or self.policy, self.seed, self.jobs)

    def move(self, placement: Placement) -> Move:
        """Return what it costs to get to a placement from the one that runs."""
        if self.running is None:
            raise InputError("move: nothing runs yet; give the previous placement")
        return price(schedule(self.running, placement, self.cluster.node), self.cluster, self.spec.expert_bytes)

    def relabelled(self, placement: Placement) -> Placement:
        """Return a placement with like ranks renumbered so that the fewest experts move, and slots kept."""
        if self.running is None:
            return placement
        experts = relabel(placement.experts, self.limits.was, self.cluster, self.limits.room)
        return keep_slots(self.running, Placement(experts, self.experts))

    def seconds_left(self) -> float:
        """Return the seconds until the deadline, compilation aside; it is now where a stop was asked for."""
        return 0.0 if self.stopped() else self.deadline_s - (working_s() - self.started)

    def stopped(self) -> bool:
        """Return whether the solver shall return the best so far."""
        return bool(self.stop and self.stop())

    def tell(self, stage: str, best_s: float, done: float | None = None) -> None:
        """Tell whoever watches how good the best placement so far is; see :class:`Progress`."""
        if self.watch is not None:
            self.watch(Progress(working_s() - self.started, best_s, stage, done))

    def note(self, text: str) -> None:
        """Add a note to the plan, once."""
        if text not in self.notes:
            self.notes.append(text)


class Solver(Protocol):
    """Return the expert of every slot, int32 [layers, ranks, slots], -1 where a slot stays empty."""

    def __call__(self, problem: Problem) -> Array: ...  # noqa: D102


Function = TypeVar("Function", bound=Callable[..., Any])


def takes(**defaults: Any) -> Callable[[Function], Function]:
    """Declare the options of a solver and their defaults; ``solve()`` refuses others."""

    def declare(function: Function) -> Function:
        function.defaults = defaults  # type: ignore[attr-defined]
        return function

    return declare


def complete_options(solver: Solver, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a solver with defaults filled in.

    Raises
    ------
    InputError
        If an option is none of this solver's.
    """
    defaults: Mapping[str, Any] = getattr(solver, "defaults", {})
    for option in given:
        if option not in defaults:
            if not defaults:
                raise InputError(f"solver {name!r} takes no options; leave {option!r} out")
            raise UnknownName(f"option of solver {name!r}", option, defaults)
    return {**defaults, **given}


SOLVERS: Final[Registry[Solver]] = Registry(
    "solver",
    {
        "contiguous": "moesim.solve.solvers.contiguous:contiguous",
        "round-robin": "moesim.solve.solvers.round_robin:round_robin",
        "random": "moesim.solve.solvers.shuffled:shuffled",
        "lpt": "moesim.solve.solvers.lpt:lpt",
        "snake": "moesim.solve.solvers.snake:snake",
        "eplb": "moesim.solve.solvers.eplb:eplb",
        "eplb-hierarchical": "moesim.solve.solvers.eplb:eplb_hierarchical",
        "moesim": "moesim.solve.solvers.moesim:moesim",
        "cp-sat": "moesim.solve.solvers.cp_sat:cp_sat",
    },
    "moesim.solvers",
)
"""Solvers by name; others register theirs in the entry-point group ``moesim.solvers``."""
