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

from moesim.base.compiled import compiled, compiled_as_numpy, overwrite, plain
from moesim.solve.search.cost import steep_power
from moesim.solve.search.state import State

ROUNDS: Final = plain(2)
"""Rounds of pouring after a move."""
_FIRST: Final = plain(30)
"""Rounds from scratch."""
POURING: Final = 2
"""Work of an expert that is poured, in one scenario."""


class Sharing(NamedTuple):
    """Who does what in every scenario, as it is and as it would be after a move.

    Scenarios come last everywhere, so that a processor works on several at a time.

    ``unit`` float64 [ranks]: time of a pick; ``time``, ``time_then`` float64 [ranks, scenarios]; ``flow``,
    ``flow_then`` float64 [ranks * slots, scenarios]: picks that each slot does; ``spots`` int32 [experts, ranks]: slots
    of an expert, of which there are ``many`` int32 [experts]; ``reference`` float64 [scenarios]: mean time of a rank;
    ``level``, ``room``, ``width`` float64 [scenarios]: working space.
    """

    unit: Any
    time: Any
    time_then: Any
    flow: Any
    flow_then: Any
    spots: Any
    many: Any
    reference: Any
    level: Any
    room: Any
    width: Any


@compiled
def share_load(state: State) -> Sharing:
    """Share the load of the placement in ``state`` from scratch, and write ``state.load``; empty if not ``poured``."""
    on = state.poured[0]
    ranks, slots = state.slots.shape
    experts, scenarios = len(state.copies) * on, state.demand.shape[1] * on
    sharing = Sharing(
        state.unit, np.zeros((ranks, scenarios)), np.zeros((ranks, scenarios)), np.zeros((ranks * slots, scenarios)),
        np.zeros((ranks * slots, scenarios)), np.zeros((experts, ranks), np.int32), np.zeros(experts, np.int32),
        np.zeros(scenarios), np.zeros(scenarios), np.zeros(scenarios), np.zeros(scenarios),
    )  # fmt: skip
    if not on:
        return sharing
    for expert in range(experts):
        find_spots(sharing, state.slots, state.held, expert)
        _pour(
            sharing.unit, sharing.time_then, sharing.flow_then, sharing.spots, expert, sharing.many[expert], slots,
            state.demand, sharing.level, sharing.room, sharing.width,
        )  # fmt: skip
    _pour_all(sharing, slots, state.demand, _FIRST)
    for scenario in range(scenarios):
        for rank in range(ranks):
            sharing.reference[scenario] += sharing.time_then[rank, scenario] / ranks
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
    unit, time, flow, spots, many = sharing.unit, sharing.time_then, sharing.flow_then, sharing.spots, sharing.many
    each = slots.shape[1]
    overwrite(time, sharing.time)
    overwrite(flow, sharing.flow)
    for index in range(several):
        _draw_off(unit, time, flow, spots, pair[index], many[pair[index]], each)
        find_spots(sharing, slots, held, pair[index])
    for index in range(several):
        _pour(
            unit, time, flow, spots, pair[index], many[pair[index]], each, demand,
            sharing.level, sharing.room, sharing.width,
        )  # fmt: skip
    poured = _pour_all(sharing, each, demand, ROUNDS)
    _add_powers(time, sharing.reference, total)
    return POURING * poured


@compiled
def keep_shares(sharing: Sharing, load: Any) -> None:
    """Let what was worked out last happen; ``load`` float64 [ranks, scenarios]."""
    flow, each = sharing.flow, len(sharing.flow) // len(load)
    overwrite(sharing.time, sharing.time_then)
    overwrite(flow, sharing.flow_then)
    load[:] = 0.0
    for spot in range(len(flow)):
        for scenario in range(load.shape[1]):
            load[spot // each, scenario] += flow[spot, scenario]


@compiled_as_numpy
def _add_powers(time: Any, reference: Any, total: Any) -> None:
    """Write the sum over ranks of time over the reference to the power of 16."""
    total[:] = 0.0
    for rank in range(len(time)):
        for scenario in range(len(total)):
            total[scenario] += steep_power(
                time[rank, scenario] / reference[scenario] if reference[scenario] > 0 else 0.0
            )


@compiled
def _pour_all(sharing: Sharing, each: int, demand: Any, rounds: int) -> int:
    """Pour every expert with several copies so many times; return how often that was, over scenarios."""
    unit, time, flow, spots, many = sharing.unit, sharing.time_then, sharing.flow_then, sharing.spots, sharing.many
    level, room, width = sharing.level, sharing.room, sharing.width
    poured = 0
    for _ in range(rounds):
        for expert in range(len(many)):
            if many[expert] > 1:
                poured += time.shape[1]
                _draw_off(unit, time, flow, spots, expert, many[expert], each)
                _pour(unit, time, flow, spots, expert, many[expert], each, demand, level, room, width)
    return poured


@compiled
def _draw_off(
    unit: Any, time: Any, flow: Any, spots: Any, expert: int, many: int, each: int
) -> None:  # fmt: skip
    """Take an expert's picks off its ranks, in all scenarios; arrays as in :class:`Sharing`."""
    for copy in range(many):
        spot = np.uint64(spots[expert, copy])
        rank = np.uint64(spots[expert, copy] // each)
        for scenario in range(np.uint64(time.shape[1])):
            time[rank, scenario] -= flow[spot, scenario] * unit[rank]
            flow[spot, scenario] = 0.0


@compiled_as_numpy
def _pour(
    unit: Any, time: Any, flow: Any, spots: Any, expert: int, many: int, each: int, demand: Any,
    level: Any, room: Any, width: Any,
) -> None:  # fmt: skip
    """Give an expert's picks to its ranks so that those that get some end together, and no other would be earlier.

    Arrays as in :class:`Sharing`. Indices are unsigned because signed ones cost a test for negative values each.
    """
    scenarios = np.uint64(len(level))
    for scenario in range(scenarios):
        level[scenario] = np.inf
    for _ in range(many):
        # ranks that are busy for longer anyway get nothing
        for scenario in range(scenarios):
            room[scenario] = demand[expert, scenario]
            width[scenario] = 0.0
        for copy in range(many):
            rank = np.uint64(spots[expert, copy] // each)
            rate = 1 / unit[rank]
            for scenario in range(scenarios):
                idle = time[rank, scenario] < level[scenario]
                room[scenario] += time[rank, scenario] * rate if idle else 0.0
                width[scenario] += rate if idle else 0.0
        for scenario in range(scenarios):
            # where no rank is idle there is nothing to give, and the level stays
            found = room[scenario] / width[scenario] if width[scenario] > 0 else np.inf
            level[scenario] = found if found < level[scenario] else level[scenario]
    for copy in range(many):
        spot = np.uint64(spots[expert, copy])
        rank = np.uint64(spots[expert, copy] // each)
        rate = 1 / unit[rank]
        for scenario in range(scenarios):
            more = level[scenario] - time[rank, scenario]
            more = more if more > 0 else 0.0
            flow[spot, scenario] = more * rate
            time[rank, scenario] += more
