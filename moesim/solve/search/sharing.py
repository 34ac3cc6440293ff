"""Load where copies share every batch as evenly as they can, as a linear program per batch brings about.

The program's answer is the load that is as even as the copies allow, and it can be had by pouring: one expert after the
other fills up those of its ranks that are least busy, given what the others do there. From scratch some rounds of that
come within a percent of the program; after a move two do, from where the last one ended. Placements that are searched
for like that connect ranks by copies so that an excess of any expert can drain; those that are only balanced when
copies share evenly need not.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from moesim.placement.kernels import compiled
from moesim.solve.search.cost import steep_power
from moesim.solve.search.state import SHARING, State

ROUNDS: Final = 2
"""Rounds of pouring after a move."""
_FIRST: Final = 30
"""Rounds from scratch."""
POURING: Final = 12
"""Work of an expert that is poured, in one scenario."""


class Sharing(NamedTuple):
    """Who does what in every scenario, as it is and as it would be after a move.

    ``unit`` float64 [ranks]: time of a pick; ``time``, ``time_then`` float64 [scenarios, ranks]; ``flow``,
    ``flow_then`` float64 [scenarios, ranks * slots]: picks that each slot does; ``spots`` int32 [experts, ranks]: slots
    of an expert, of which there are ``many`` int32 [experts]; ``reference`` float64 [scenarios]: mean time of a rank.
    """

    unit: Any
    time: Any
    time_then: Any
    flow: Any
    flow_then: Any
    spots: Any
    many: Any
    reference: Any


@compiled
def share_load(state: State) -> Sharing:
    """Share the load of the placement in ``state`` from scratch, and write ``state.load``; empty if not ``SHARING``."""
    on = state.policy[0] == SHARING
    ranks, slots = state.slots.shape
    experts, scenarios = len(state.copies) * on, state.demand.shape[1] * on
    sharing = Sharing(
        state.unit, np.zeros((scenarios, ranks)), np.zeros((scenarios, ranks)), np.zeros((scenarios, ranks * slots)),
        np.zeros((scenarios, ranks * slots)), np.zeros((experts, ranks), np.int32), np.zeros(experts, np.int32),
        np.zeros(scenarios),
    )  # fmt: skip
    if not on:
        return sharing
    for expert in range(experts):
        find_spots(sharing, state.slots, state.held, expert)
        _pour(
            sharing.unit, sharing.time_then, sharing.flow_then, sharing.spots, sharing.many[expert], slots, expert,
            state.demand,
        )  # fmt: skip
    _pour_all(sharing, slots, state.demand, _FIRST)
    for scenario in range(scenarios):
        for rank in range(ranks):
            sharing.reference[scenario] += sharing.time_then[scenario, rank] / ranks
    keep_shares(sharing, state.load)
    return sharing


@compiled
def find_spots(sharing: Sharing, slots: Any, held: Any, expert: int) -> None:
    """Take in where the copies of an expert are."""
    found = 0
    ranks, each = slots.shape
    for rank in range(ranks):
        if held[expert, rank]:
            for slot in range(each):
                if slots[rank, slot] == expert:
                    sharing.spots[expert, found] = rank * each + slot
                    found += 1
    sharing.many[expert] = found


@compiled
def share_anew(sharing: Sharing, slots: Any, held: Any, demand: Any, pair: Any, several: int, total: Any) -> int:
    """Work out what it comes to that ``slots`` hold the first ``several`` experts of ``pair`` elsewhere.

    Returns the work; ``total`` float64 [scenarios] gets the sum over ranks of time over the reference to the power of
    16, see :func:`moesim.solve.search.cost.powers_s`.
    """
    each = slots.shape[1]
    unit, time, flow, spots, many = sharing.unit, sharing.time_then, sharing.flow_then, sharing.spots, sharing.many
    time[:] = sharing.time
    flow[:] = sharing.flow
    scenarios, ranks = time.shape
    for index in range(several):
        _draw_off(unit, time, flow, spots, many[pair[index]], each, pair[index])
        find_spots(sharing, slots, held, pair[index])
    for index in range(several):
        _pour(unit, time, flow, spots, many[pair[index]], each, pair[index], demand)
    poured = _pour_all(sharing, each, demand, ROUNDS)
    for scenario in range(scenarios):
        total[scenario] = 0.0
        if sharing.reference[scenario] > 0:
            for rank in range(ranks):
                total[scenario] += steep_power(time[scenario, rank] / sharing.reference[scenario])
    return POURING * poured


@compiled
def keep_shares(sharing: Sharing, load: Any) -> None:
    """Let what was worked out last happen; ``load`` float64 [ranks, scenarios]."""
    sharing.time[:] = sharing.time_then
    sharing.flow[:] = sharing.flow_then
    ranks, scenarios = load.shape
    each = sharing.flow.shape[1] // ranks
    for rank in range(ranks):
        for scenario in range(scenarios):
            load[rank, scenario] = 0.0
            for slot in range(each):
                load[rank, scenario] += sharing.flow[scenario, rank * each + slot]


@compiled
def _pour_all(sharing: Sharing, each: int, demand: Any, rounds: int) -> int:
    """Pour every expert with several copies so many times; return how often that was, over all scenarios."""
    unit, time, flow, spots, many = sharing.unit, sharing.time_then, sharing.flow_then, sharing.spots, sharing.many
    poured = 0
    for _ in range(rounds):
        for expert in range(len(many)):
            if many[expert] > 1:
                poured += len(time)
                _draw_off(unit, time, flow, spots, many[expert], each, expert)
                _pour(unit, time, flow, spots, many[expert], each, expert, demand)
    return poured


@compiled
def _draw_off(unit: Any, time: Any, flow: Any, spots: Any, many: int, each: int, expert: int) -> None:
    """Take an expert's picks off its ranks, in all scenarios; arrays as in :class:`Sharing`."""
    for copy in range(many):
        spot = spots[expert, copy]
        rank = spot // each
        for scenario in range(len(time)):
            time[scenario, rank] -= flow[scenario, spot] * unit[rank]
            flow[scenario, spot] = 0.0


@compiled
def _pour(unit: Any, time: Any, flow: Any, spots: Any, many: int, each: int, expert: int, demand: Any) -> None:
    """Give an expert's picks to its ranks so that those that get some end together, and no other would be earlier."""
    for scenario in range(len(time)):
        level = np.inf
        for _ in range(many):
            # ranks that are busy for longer anyway get nothing
            room, width = demand[expert, scenario], 0.0
            for copy in range(many):
                rank = spots[expert, copy] // each
                if time[scenario, rank] < level:
                    room += time[scenario, rank] / unit[rank]
                    width += 1 / unit[rank]
            if width == 0.0 or room / width >= level:
                break
            level = room / width
        for copy in range(many):
            spot = spots[expert, copy]
            rank = spot // each
            if time[scenario, rank] < level:
                flow[scenario, spot] = (level - time[scenario, rank]) / unit[rank]
                time[scenario, rank] = level
