"""The closed form: the clocks of a step without an event queue, where nothing competes for a stream."""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import ONE, ZERO, compiled
from moesim.base.errors import InputError
from moesim.simulate.clocks import exchange_end
from moesim.simulate.phases import ATTENTION, COMBINE, DISPATCH, EXPERTS, PHASES, SHARED
from moesim.simulate.schedules import Schedule
from moesim.simulate.work import Timeline, Work, empty_timeline


def has_closed_form(schedule: Schedule) -> bool:
    """Return whether nothing competes for a stream, so that no event queue is needed to tell the order."""
    side = schedule.stream["shared"] != schedule.stream["attention"]
    return schedule.micro_batches == 1 and (side or schedule.dispatch_after == "shared") and _usual(schedule)


def _usual(schedule: Schedule) -> bool:
    """Return whether exchanges and experts share a stream that the shared expert, if apart, does not use."""
    stream = schedule.stream
    main = {stream[phase] for phase in ("attention", "dispatch", "experts", "combine")}
    return len(main) == 1 and (stream["shared"] not in main or schedule.dispatch_after == "shared")


def run_closed_form(work: Work, schedule: Schedule) -> Timeline:
    """Return when each rank begins and ends each phase of one step, by formula.

    Raises
    ------
    InputError
        If the schedule has phases compete for a stream, whose order only an event engine can tell.
    """
    side = schedule.stream["shared"] != schedule.stream["attention"]
    if schedule.micro_batches > 1 or (not side and schedule.dispatch_after == "attention"):
        raise InputError(
            f"schedule {schedule.name!r} overlaps work on a stream, which has no closed form; use engine='events'"
        )
    M, L, R = work.shape
    start, end, _ = empty_timeline(M, L, R)
    blocking = schedule.dispatch_after == "shared"
    _layers(
        work.attention_s[0],
        work.shared_s[0],
        work.experts_s[0],
        work.arrive_s[0],
        work.own_s[0],
        work.word_s[0],
        np.array(work.everyone),
        work.sends[0],
        blocking,
        start[0],
        end[0],
    )
    return Timeline(start, end, _order(schedule, L))


@compiled
def _layers(
    attention: Array,
    shared: Array,
    experts: Array,
    arrive: Array,
    own: Array,
    word: Array,
    everyone: Array,
    sends: Array,
    blocking: bool,
    start: Array,
    end: Array,
) -> None:
    for layer in range(len(attention)):
        if layer:
            start[ATTENTION, layer] = np.maximum(end[COMBINE, layer - 1], end[SHARED, layer - 1])
        end[ATTENTION, layer] = start[ATTENTION, layer] + attention[layer]
        start[SHARED, layer] = end[ATTENTION, layer]
        if layer and not blocking:
            start[SHARED, layer] = np.maximum(start[SHARED, layer], end[SHARED, layer - 1])
        end[SHARED, layer] = start[SHARED, layer] + shared[layer]
        start[DISPATCH, layer] = end[SHARED, layer] if blocking else end[ATTENTION, layer]
        _exchange(ZERO, layer, arrive, own, word, everyone, sends, start[DISPATCH, layer], end[DISPATCH, layer])
        start[EXPERTS, layer] = end[DISPATCH, layer]
        end[EXPERTS, layer] = start[EXPERTS, layer] + experts[layer]
        start[COMBINE, layer] = end[EXPERTS, layer]
        _exchange(ONE, layer, arrive, own, word, everyone, sends, start[COMBINE, layer], end[COMBINE, layer])


@compiled
def _exchange(
    way: int,
    layer: int,
    arrive: Array,
    own: Array,
    word: Array,
    everyone: Array,
    sends: Array,
    start: Array,
    end: Array,
) -> None:
    exchange_end(
        start,
        arrive[way, layer],
        own[way, layer],
        word[way, layer],
        everyone[way],
        sends[way, layer],
        end,
    )


def _order(schedule: Schedule, L: int) -> Array:
    """Return what runs before each phase on its stream: the phases of a layer in turn, then the next layer."""
    previous = np.full((1, len(PHASES), L), -1, dtype=np.int64)
    last = dict.fromkeys(schedule.stream.values(), -1)
    for layer in range(L):
        for phase, name in enumerate(PHASES):
            stream = schedule.stream[name]
            previous[0, phase, layer] = last[stream]
            last[stream] = phase * L + layer
    return previous
