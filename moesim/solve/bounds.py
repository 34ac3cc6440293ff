"""Lower bounds: seconds that no placement with these slots can beat, under any dispatch policy that picks whole copies.

For every step and layer, from arguments that hold whatever the placement:

* **load**: the fullest rank computes at least the mean load, and at least its share of the experts that are active
  (:mod:`moesim.solve.working`);
* **copies**: what must leave a rank or a node by popularity and by pairs of picks (:mod:`moesim.solve.copies`), and
  tokens that their node cannot serve alone (:mod:`moesim.solve.coverage`), take seconds on cards, copy engines and
  receive passes (:mod:`moesim.solve.exchange`);
* **sums**: a rank receives, computes, and then sends what it owes others, with nobody else in the network at best. The
  last rank is done no earlier than the mean of these sums;
* **floors**: launches, attention and shared experts.

They are put together as :mod:`moesim.costs.closed_form` chains the clocks of a step, so that the bound of a step holds
for the whole step, with ranks that run ahead in one layer and lag in the next.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from joblib import Parallel, delayed

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import InputError
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.solve.exchange import Exchange, must_move
from moesim.solve.objective import every_step, fixed_parts
from moesim.solve.rates import Way
from moesim.solve.working import Work
from moesim.trace.batching import Batches


@dataclass(frozen=True, eq=False)
class BoundReport(Sealed):
    """What no placement can beat.

    Parameters
    ----------
    steps_s
        Seconds of each step, float64 [steps].
    layer_s
        Mean over steps of each layer on its own, float64 [layers].
    load_s, traffic_s
        What of it comes from the load of the ranks alone and from traffic alone, float64 [layers].
    """

    steps_s: Array
    layer_s: Array
    load_s: Array
    traffic_s: Array

    def __post_init__(self) -> None:
        seal(self, "steps_s", self.steps_s, np.float64, ("steps",))
        layers = len(seal(self, "layer_s", self.layer_s, np.float64, ("layers",)))
        for name in ("load_s", "traffic_s"):
            seal(self, name, getattr(self, name), np.float64, ("layers",), {"layers": layers})

    @property
    def step_s(self) -> float:
        """Mean seconds of a step."""
        return float(self.steps_s.mean())


_KNOWN: Final[weakref.WeakKeyDictionary[Costs, dict[tuple[tuple[str, ...], int], BoundReport]]] = (
    weakref.WeakKeyDictionary()
)


def step_bound(
    batches: Batches | Sequence[Batches], cluster: Cluster, costs: Costs, slots_per_rank: int, jobs: int = 1
) -> BoundReport:
    """Return seconds that no placement with so many slots can beat on these steps.

    It is remembered as long as the costs live: every solver of a comparison has the same bound.

    Parameters
    ----------
    batches
        Steps, or windows of them.
    slots_per_rank
        Experts that a rank can hold in a layer.
    jobs
        Threads that steps are shared among.

    Raises
    ------
    InputError
        If the costs are for another cluster.
    """
    if costs.cluster.digest != cluster.digest:
        raise InputError(f"bound: the costs are for cluster {costs.cluster.name!r}, not for {cluster.name!r}")
    windows = (batches,) if isinstance(batches, Batches) else tuple(batches)
    known = _KNOWN.setdefault(costs, {})
    key = (tuple(window.digest for window in windows), slots_per_rank)
    if key not in known:
        known[key] = _bound(windows, costs, slots_per_rank, jobs)
    return known[key]


def _bound(windows: Sequence[Batches], costs: Costs, slots_per_rank: int, jobs: int) -> BoundReport:
    ways = Way.of(costs, "dispatch"), Way.of(costs, "combine")
    parallel = Parallel(n_jobs=jobs, backend="threading")
    parts = parallel(delayed(_step)(window, step, costs, slots_per_rank, ways) for window, step in every_step(windows))
    steps, alone, load, traffic = zip(*parts, strict=True)
    return BoundReport(np.array(steps), np.mean(alone, axis=0), np.mean(load, axis=0), np.mean(traffic, axis=0))


def _step(
    window: Batches, step: int, costs: Costs, slots: int, ways: tuple[Way, Way]
) -> tuple[float, Array, Array, Array]:
    """Return the bound of the step, and of its layers alone: in all, by load, by traffic [layers]."""
    fixed = fixed_parts(window, step, costs)
    gate = fixed.attention_s if costs.shared_expert == "overlap" else fixed.attention_s + fixed.shared_s
    used = min(slots, costs.spec.experts)
    moved = must_move(costs, window.routes(step), window.homes(step), used)
    work = Work(costs, moved.left.pairs, moved.left.active, used)
    out = Exchange(costs, "dispatch", ways[0], moved, fixed)
    back = Exchange(costs, "combine", ways[1], moved, fixed)
    # means over ranks of what adds up on a rank: experts; arrival and experts; experts and results; all three
    mean, through, early, late, later, chain, traffic = np.zeros((7, len(moved.left.active)))
    for share in _shares(work):
        arrive, experts, results, far = out.received(share), work.shared(share), back.sent(share), work.far_s
        mean = np.maximum(mean, np.minimum(experts, far))
        through = np.maximum(through, np.minimum(arrive + experts, far))
        early = np.maximum(early, np.minimum(arrive + experts + back.sent_to_all(share), far))
        waited = experts + out.late(share)
        later = np.maximum(later, np.minimum(waited, far))
        late = np.maximum(late, np.minimum(waited + results, far))
        chain = np.maximum(chain, np.minimum(arrive + experts + results, far))
        traffic = np.maximum(traffic, back.received(share))
    first_home, last_home = back.home()
    slowest = work.slowest()
    everyone = ways[0].everyone and ways[1].everyone
    # where nobody waits for a word of all, the last rank to compute may have nothing to send
    word = ways[1].floor_s if everyone else 0.0
    start = float(gate.min()) + ways[0].floor_s
    load = start + np.maximum(slowest, mean) + word
    empty = start + work.idle_s + ways[1].floor_s
    traffic = empty + np.maximum(traffic, last_home)
    through = start + np.maximum(slowest, through) + word
    alone = np.maximum(traffic, through)
    if not everyone:
        # a rank may run ahead: only what even the first rank needs adds up
        return float((empty + first_home)[:-1].sum() + alone[-1]), alone, load, traffic
    alone = np.maximum(alone, start + chain + word)
    early = np.maximum(np.maximum(through, start + early + word), empty + first_home)
    late, later = (start + np.maximum(slowest, part) + word for part in (late, later))
    return _longest(early, alone, late, later), alone, load, traffic


def _shares(work: Work) -> list[Array]:
    """Return weights of ranks by which means are taken, each adding up to 1: equal, and by speed where it differs."""
    speed = work.speed
    equal = np.full(work.ranks, 1 / work.ranks)
    return [equal] if np.ptp(speed) == 0 else [equal, speed / speed.sum()]


def _longest(early: Array, alone: Array, late: Array, later: Array) -> float:
    """Return when the last rank is through with all layers at least.

    Parameters
    ----------
    early, alone
        Seconds from the first rank's start of a layer to the first, and to the last, rank's end; [layers].
    late, later
        Seconds from the last rank's start to the last, and to the first, rank's end; [layers].
    """
    first = last = 0.0
    for to_first, to_last, last_to_last, last_to_first in zip(early, alone, late, later, strict=True):
        ahead = max(first + to_first, last + last_to_first)
        first, last = ahead, max(ahead, first + to_last, last + last_to_last)
    return float(last)
