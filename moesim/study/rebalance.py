"""Replay drifting traffic and plan anew as it runs, paying for every expert that moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError, UnknownName
from moesim.base.units import count
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.placement import Placement
from moesim.placement.migrate import migration
from moesim.placement.rounds import Schedule
from moesim.simulate import simulate
from moesim.solve import solve
from moesim.solve.moving import price
from moesim.solve.terms import steps_of_move
from moesim.trace import Batches

WHEN: Final = ("never", "interval", "threshold", "oracle")
"""When a new plan is made: never; every so many steps; when balance has fallen; at every change, for what comes."""
MIGRATE: Final = ("stop", "overlap", "free")
"""How experts move: serving stops; layer by layer in the time that links are idle; at no cost (what cannot be had)."""


@dataclass(frozen=True)
class Rebalancing:
    """When to plan anew, and what a move costs.

    Parameters
    ----------
    when
        One of `WHEN`.
    interval
        Steps between plans.
    threshold
        Rise of the batch imbalance over that right after the last plan that asks for a new one: 0.1 is 10 %.
    window
        Last steps that a plan is fitted on.
    migrate
        One of `MIGRATE`.
    stall_s
        Seconds that serving stops at each move beyond its bytes (bookkeeping, graphs, synchronisation).
    share
        Part of the idle time of links that moves may use while serving goes on.
    gain
        A new plan is taken only if it is faster on the window by more than this: 0.01 is 1 %.
    repeat
        Real steps for which each replayed step stands: a trace of minutes tells of a domain of hours.
    """

    when: str = "interval"
    interval: int = 8
    threshold: float = 0.1
    window: int = 4
    migrate: str = "stop"
    stall_s: float = 0.0
    share: float = 0.5
    gain: float = 0.0
    repeat: int = 1000

    def __post_init__(self) -> None:
        if self.when not in WHEN:
            raise UnknownName("time to plan anew", self.when, WHEN)
        if self.migrate not in MIGRATE:
            raise UnknownName("way to migrate", self.migrate, MIGRATE)
        for least, names in ((1, ("interval", "window", "repeat")), (0, ("threshold", "stall_s"))):
            for name in names:
                if not getattr(self, name) >= least:
                    raise InputError(f"rebalance: {name}: expected at least {least}, got {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise InputError(f"rebalance: share: expected a part above 0 and at most 1, got {self.share}")
        if math.isinf(self.stall_s):
            raise InputError("rebalance: stall_s: expected finite seconds, got inf")


@dataclass(frozen=True, eq=False)
class Replay:
    """What a replay found; a step stands for ``repeat`` real ones.

    Parameters
    ----------
    step_s
        float64 [steps]: seconds of one real step, mean over those it stands for.
    stall_s
        float64 [steps]: seconds that serving stopped before each step.
    beside_s
        float64 [steps]: seconds of the real steps, all together, that they took longer because experts moved beside
        them; below 0 where the placement that is left is the faster one.
    imbalance
        float64 [steps]: max over mean tokens of a rank, mean over layers.
    plans, moves, moved_bytes
        Plans made; experts copied; their bytes.
    repeat
        Real steps of a step.
    cut
        Plans whose search the deadline cut short.
    """

    step_s: Array
    stall_s: Array
    beside_s: Array
    imbalance: Array
    plans: int
    moves: int
    moved_bytes: float
    repeat: int
    cut: int = 0

    @property
    def serving_s(self) -> float:
        """Seconds of all real steps."""
        return float(self.step_s.sum() * self.repeat)

    @property
    def total_s(self) -> float:
        """Seconds of all real steps and stalls."""
        return self.serving_s + float(self.stall_s.sum())


@dataclass
class World:
    """What a replay runs on; prices of steps, plans and moves are kept, as many replays share them.

    Parameters
    ----------
    batches, labels
        Steps, and what each is part of (an oracle plans where it changes).
    cluster, costs, policy, slots
        What runs.
    solver, options, seed
        Who plans.
    deadline_s
        Seconds that each plan may take.
    searches, cut
        Plans made so far; digests of the placements whose search the deadline cut short.
    """

    batches: Batches
    labels: Sequence[str]
    cluster: Cluster
    costs: Costs
    policy: str
    slots: int
    solver: str = "eplb"
    options: Mapping[str, Any] = field(default_factory=dict)
    deadline_s: float = 60.0
    seed: int = 0
    prices: dict[tuple[str, int], tuple[float, float, Array]] = field(default_factory=dict)
    plans: dict[tuple[int, int, str | None], Placement] = field(default_factory=dict)
    moves: dict[tuple[str, str], Schedule] = field(default_factory=dict)
    searches: int = 0
    cut: set[str] = field(default_factory=set)

    def price(self, placement: Placement, step: int) -> tuple[float, float, Array]:
        """Return seconds, imbalance and seconds of each link's bytes [links] of one step."""
        key = (placement.digest, step)
        if key not in self.prices:
            one = self.batches.take(slice(step, step + 1))
            report = simulate(
                one, self.cluster, placement, policy=self.policy, costs=self.costs, engine="closed-form", seed=self.seed
            )
            used = report.link_bytes / report.link_bandwidth
            self.prices[key] = report.mean_step_s, report.batch_imbalance, used
        return self.prices[key]

    def plan(self, first: int, last: int, running: Placement | None) -> Placement:
        """Return a plan fitted on some steps."""
        key = (first, last, running.digest if running is not None else None)
        if key not in self.plans:
            self.plans[key] = self.fitted(self.batches.take(slice(first, last)), running)
        return self.plans[key]

    def move_s(self, old: Placement, new: Placement, spare: Array | None = None) -> float:
        """Return the seconds of a move: round after round, as `moesim migrate` makes it.

        Parameters
        ----------
        spare
            Part of each link's bandwidth that copies get, float64 [links]; default: all.
        """
        key = (old.digest, new.digest)
        if key not in self.moves:
            self.moves[key] = steps_of_move(old.experts, new, self.costs.spec, self.cluster)
        return price(self.moves[key], self.cluster, self.costs.spec.expert_bytes, spare).seconds

    def fitted(self, batches: Batches, running: Placement | None = None) -> Placement:
        """Return a plan fitted on other steps."""
        plan = solve(
            batches, self.cluster, slots_per_rank=self.slots, solver=self.solver, policy=self.policy, costs=self.costs,
            transport=self.costs.transport, previous=running, seed=self.seed, deadline_s=self.deadline_s, jobs=1,
            **self.options,
        )  # fmt: skip
        self.searches += 1
        if plan.cut:
            self.cut.add(plan.placement.digest)
        return plan.placement


def replay(
    world: World, start: Placement, how: Rebalancing, progress: Callable[[int, int], None] | None = None
) -> Replay:
    """Run all steps, planning anew as ``how`` says; what is moving must have arrived before the next plan is made.

    Parameters
    ----------
    start
        Placement that runs at the beginning.
    """
    steps = len(world.batches)
    step_s, stall_s, beside_s, imbalance = np.zeros((4, steps))
    running, plans, cut, moves, moved, planned_at, fresh = start, 0, 0, 0, 0.0, 0, 0.0
    leaving, under_way = start, 0.0
    # of the engine, as all other seconds are of the layers that the trace holds
    engine_stall_s = how.stall_s / world.costs.spec.stands_for
    for step in range(steps):
        # one move at a time: the next plan waits until what moves beside serving has arrived
        wanted = None if under_way > 0 else _wanted(world, how, step, planned_at, imbalance, fresh)
        old = running
        if wanted is not None:
            candidate = world.plan(*wanted, running)
            plans, planned_at, fresh = plans + 1, step, 0.0
            cut += candidate.digest in world.cut
            if how.gain <= 0 or _faster(world, candidate, running, wanted, how.gain):
                running = candidate
        seconds, balance, _ = world.price(running, step)
        step_s[step], imbalance[step] = seconds, balance
        fresh = fresh or balance
        if running.digest != old.digest:
            copies = migration(old, running, world.cluster.node)
            moves += len(copies)
            moved += copies.bytes(world.costs.spec.expert_bytes)
            if how.migrate == "stop":
                stall_s[step] = engine_stall_s + world.move_s(old, running)
            elif how.migrate == "overlap":
                stall_s[step] = engine_stall_s
                leaving, under_way = old, _steps_of_move(world, how, old, running, step)
        if under_way > 0:
            # layers switch one after the other, so that in the mean half of them run the old plan
            part = min(under_way, how.repeat) / how.repeat
            longer = (world.price(leaving, step)[0] - seconds) / 2 * part
            step_s[step] += longer
            beside_s[step] = longer * how.repeat
            under_way = max(under_way - how.repeat, 0.0)
        if progress is not None:
            progress(step + 1, steps)
    return Replay(step_s, stall_s, beside_s, imbalance, plans, moves, moved, how.repeat, cut)


def cut_note(cut: int, plans: int, deadline_s: float) -> tuple[str, ...]:
    """Return what to say of so many plans whose search the deadline cut short, nothing where it cut none."""
    if not cut:
        return ()
    return (f"the deadline of {deadline_s:g} s a plan cut the search of {cut} of {count(plans, 'plan')} short: give "
            "more time for better ones",)  # fmt: skip


def _wanted(
    world: World, how: Rebalancing, step: int, planned_at: int, imbalance: Array, fresh: float
) -> tuple[int, int] | None:
    """Return the steps on which a new plan is to be fitted now, if one is wanted."""
    past = (max(0, step - how.window), step)
    if how.when == "oracle":
        if step and world.labels[step] == world.labels[planned_at]:
            return None
        last = step
        while last < len(world.labels) and world.labels[last] == world.labels[step]:
            last += 1
        return step, last
    if step == 0:
        return None
    if how.when == "interval" and step - planned_at >= how.interval:
        return past
    # right after a plan there is nothing to compare with
    if how.when == "threshold" and fresh and imbalance[step - 1] > fresh * (1 + how.threshold):
        return past
    return None


def _faster(world: World, candidate: Placement, running: Placement, window: tuple[int, int], gain: float) -> bool:
    new, old = (
        np.mean([world.price(one, step)[0] for step in range(*window)]) for one in (candidate, running)
    )  # fmt: skip
    return bool(new < old * (1 - gain))


def _steps_of_move(world: World, how: Rebalancing, old: Placement, new: Placement, step: int) -> float:
    """Return the real steps in which experts move beside serving, which may be more than a replayed one stands for.

    Copies get a share of the time in which their links carry no tokens.
    """
    before, after = world.price(old, step), world.price(new, step)
    idle = np.maximum(before[0] - np.maximum(before[2], after[2]), 1e-9)
    return world.move_s(old, new, how.share * idle / before[0]) / before[0]
