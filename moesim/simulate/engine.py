"""The event engine: simpy puts phases, micro-batches and streams in order, numpy vectors carry the time.

A phase is one event, not one per rank: its per-rank beginnings and ends are vectors, so a rank that is early goes
ahead and a straggler delays only those who wait for it. The clock of simpy, at which the last rank ends a phase,
decides nothing but the order in which micro-batches get a stream, which is the same on all ranks, as kernels are
launched in the same order on all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import simpy

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.simulate.clocks import exchange_end, slowed
from moesim.simulate.phases import ATTENTION, COMBINE, DISPATCH, EXPERTS, PHASES, SHARED
from moesim.simulate.schedules import Schedule
from moesim.simulate.work import Timeline, Work, empty_timeline


class Stream:
    """One stream of every rank: whose turn it is, and until when each rank is busy.

    Parameters
    ----------
    env
        The simpy environment.
    ranks
        Number of ranks.
    """

    def __init__(self, env: simpy.Environment, ranks: int) -> None:
        self.turn = simpy.Resource(env)
        self.free_s = np.zeros(ranks)
        self.last = -1
        # what runs now: beginnings and ends, and for exchanges the share of compute they take; the last two of those
        self.running: tuple[Array, Array] | None = None
        self.taking: list[tuple[Array, Array, float]] = []


class Engine:
    """One step in flight.

    Parameters
    ----------
    work
        What the step has to do.
    schedule
        How phases share streams.
    """

    def __init__(self, work: Work, schedule: Schedule) -> None:
        self.env = simpy.Environment()
        self.work, self.schedule = work, schedule
        M, L, R = work.shape
        self.start_s, self.end_s, self.previous = empty_timeline(M, L, R)
        streams = {name: Stream(self.env, R) for name in sorted(set(schedule.stream.values()))}
        self.streams = list(streams.values())
        self.stream = [streams[schedule.stream[phase]] for phase in PHASES]
        self.taken: Array = np.asarray(work.taken)

    def run(self) -> Timeline:
        """Run all micro-batches to their end."""
        for micro_batch in range(self.work.shape[0]):
            self.env.process(self._micro_batch(micro_batch))
        self.env.run()
        return Timeline(self.start_s, self.end_s, self.previous)

    def _micro_batch(self, m: int) -> Iterator[Any]:
        _, L, R = self.work.shape
        ready = np.zeros(R)
        gate = SHARED if self.schedule.dispatch_after == "shared" else ATTENTION
        for layer in range(L):
            gated = self.env.event()
            front = self.env.process(self._front(m, layer, ready, gated))
            yield gated
            yield from self._turn(m, DISPATCH, layer, self.end_s[m, gate, layer])
            yield from self._turn(m, EXPERTS, layer, self.end_s[m, DISPATCH, layer])
            yield from self._turn(m, COMBINE, layer, self.end_s[m, EXPERTS, layer])
            yield front
            ready = np.maximum(self.end_s[m, COMBINE, layer], self.end_s[m, SHARED, layer])

    def _front(self, m: int, layer: int, ready: Array, gated: simpy.Event) -> Iterator[Any]:
        """Run attention and the shared expert, in one turn where they share a stream."""
        early = self.schedule.dispatch_after == "attention"
        together = self.stream[SHARED] is self.stream[ATTENTION]
        with self.stream[ATTENTION].turn.request() as turn:
            yield turn
            yield from self._run(m, ATTENTION, layer, ready)
            if early:
                gated.succeed()
            if together:
                yield from self._run(m, SHARED, layer, self.end_s[m, ATTENTION, layer])
        if not together:
            yield from self._turn(m, SHARED, layer, self.end_s[m, ATTENTION, layer])
        if not early:
            gated.succeed()

    def _turn(self, m: int, phase: int, layer: int, ready: Array) -> Iterator[Any]:
        with self.stream[phase].turn.request() as turn:
            yield turn
            yield from self._run(m, phase, layer, ready)

    def _run(self, m: int, phase: int, layer: int, ready: Array) -> Iterator[Any]:
        """Run one phase until its last rank ends it."""
        self._begin(m, phase, layer, ready)
        end = self.end_s[m, phase, layer]
        # the vectors are the truth: rounding may put the last end a hair before the clock of simpy
        yield self.env.timeout(max(0.0, float(end.max()) - self.env.now))
        if not self.schedule.contends:
            return
        # an exchange that began meanwhile may have slowed it
        while self.env.now + (rest := float(end.max()) - self.env.now) > self.env.now:
            yield self.env.timeout(rest)

    def _begin(self, m: int, phase: int, layer: int, ready: Array) -> None:
        """Write the clocks of one phase."""
        work, stream = self.work, self.stream[phase]
        start, end = self.start_s[m, phase, layer], self.end_s[m, phase, layer]
        np.maximum(ready, stream.free_s, out=start)
        if phase in (DISPATCH, COMBINE):
            way = int(phase == COMBINE)
            at = m, way, layer
            times = work.arrive_s[at], work.own_s[at], work.word_s[at]
            exchange_end(start, *times, work.everyone[way], work.sends[at], end)
            self._take(stream, start, end, float(self.taken[at]))
        else:
            np.add(start, work.compute_s(phase)[m, layer], out=end)
            if self.schedule.contends:
                for begun, over, share in (taking for other in self.streams for taking in other.taking):
                    slowed(start, end, begun, over, share)
                stream.running = start, end
        self.previous[m, phase, layer] = stream.last
        stream.free_s, stream.last = end, self._code(m, phase, layer)

    def _take(self, stream: Stream, start: Array, end: Array, share: float) -> None:
        """Slow what computes beside an exchange."""
        if not (self.schedule.contends and share):
            return
        for other in self.streams:
            if other is not stream and other.running is not None:
                slowed(*other.running, start, end, share)
        stream.taking = [*stream.taking[-1:], (start, end, share)]

    def _code(self, m: int, phase: int, layer: int) -> int:
        return (m * len(PHASES) + phase) * self.work.shape[1] + layer


def run_events(work: Work, schedule: Schedule) -> Timeline:
    """Simulate one step with the event engine.

    Raises
    ------
    InputError
        If the work is not cut into as many micro-batches as the schedule runs.
    """
    if work.shape[0] != schedule.micro_batches:
        raise InputError(
            f"schedule {schedule.name!r} runs {schedule.micro_batches} micro-batches, the work has {work.shape[0]}"
        )
    return Engine(work, schedule).run()
