"""The critical path of a step: the chain of work and transfers, each waiting for the one before, that ends with it.

It is walked backwards from the last rank to end. Nothing waits on it, so its parts add up to the step exactly.
"""

from __future__ import annotations

import numpy as np

from moesim.base.arrays import Array
from moesim.base.compiled import compiled
from moesim.simulate.clocks import held_up
from moesim.simulate.phases import ATTENTION, COMBINE, DISPATCH, EXPERTS, PHASES, SHARED
from moesim.simulate.schedules import Schedule
from moesim.simulate.work import Timeline, Work


def critical_path(work: Work, timeline: Timeline, schedule: Schedule) -> Array:
    """Return the seconds ``[phases, L, R]`` that each rank contributes to the critical path.

    Transfer time that the network's load decides is put on the rank that receives; time that the bytes, or the word,
    of a late sender take, on the sender. Where two chains are equally long, the one through the rank with the lower
    number, and through data rather than through a busy stream, is taken.
    """
    _, L, R = work.shape
    spent = np.zeros((len(PHASES), L, R))
    gate = SHARED if schedule.dispatch_after == "shared" else ATTENTION
    _walk(
        timeline.start_s,
        timeline.end_s,
        timeline.previous,
        work.arrive_s,
        work.own_s,
        work.word_s,
        np.array(work.everyone),
        work.sends,
        gate,
        spent,
    )
    return spent


@compiled
def _walk(
    start: Array,
    end: Array,
    previous: Array,
    arrive: Array,
    own: Array,
    word: Array,
    everyone: Array,
    sends: Array,
    gate: int,
    spent: Array,
) -> None:
    M, P, L, R = start.shape
    m, phase, layer, rank = 0, COMBINE, L - 1, 0
    for batch in range(M):
        for r in range(R):
            for last in (COMBINE, SHARED):
                if end[batch, last, L - 1, r] > end[m, phase, layer, rank]:
                    m, phase, rank = batch, last, r
    while True:
        begin = start[m, phase, layer]
        if phase in (DISPATCH, COMBINE):
            way = 1 if phase == COMBINE else 0
            done = end[m, phase, layer, rank]
            first = begin.argmin()
            if done > begin[rank]:
                late = arrive[m, way, layer, rank]
                cause = -1
                if begin[first] + late == done:
                    cause, payer = first, rank
                for other in range(R):
                    alone = min(own[m, way, layer, other], late)
                    bit = sends[m, way, layer, other, rank >> 3] >> (7 - (rank & 7)) & 1
                    if cause < 0 and bit and begin[other] + alone == done:
                        cause, payer = other, other
                if cause < 0:
                    cause, payer = (
                        held_up(begin, late, own[m, way, layer], word[m, way, layer], sends[m, way, layer], rank, done),
                        rank,
                    )
                if cause < 0 and everyone[way]:
                    cause = payer = begin.argmax()
                spent[phase, layer, payer] += done - begin[cause]
                rank = cause
        else:
            spent[phase, layer, rank] += end[m, phase, layer, rank] - begin[rank]
        # who held up the beginning: what this phase needs, or what ran before on its stream
        wanted = start[m, phase, layer, rank]
        before = previous[m, phase, layer]
        if phase == ATTENTION:
            if layer > 0 and end[m, COMBINE, layer - 1, rank] == wanted:
                phase, layer = COMBINE, layer - 1
                continue
            if layer > 0 and end[m, SHARED, layer - 1, rank] == wanted:
                phase, layer = SHARED, layer - 1
                continue
        else:
            need = ATTENTION
            if phase == DISPATCH:
                need = gate
            elif phase == EXPERTS:
                need = DISPATCH
            elif phase == COMBINE:
                need = EXPERTS
            if end[m, need, layer, rank] == wanted:
                phase = need
                continue
        if before < 0:
            return
        m, phase, layer = before // (P * L), before // L % P, before % L
