"""The reference engine: simpy processes for every rank, an event for every message. Slow, plain, for tests.

Every rank runs its streams by itself; simpy's clock is the time. It shares no arithmetic with the event engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import simpy

from moesim.simulate.clocks import rest_s
from moesim.simulate.phases import ATTENTION, COMBINE, DISPATCH, EXPERTS, PHASES, SHARED
from moesim.simulate.schedules import Schedule
from moesim.simulate.work import Timeline, Work, empty_timeline

Op = tuple[int, int, int]  # micro-batch, phase, layer

STAGES = ((ATTENTION, SHARED), (DISPATCH,), (EXPERTS,), (COMBINE,))
"""What a rank launches for each micro-batch in turn before it goes on to the next stage."""


def launch_order(schedule: Schedule, micro_batches: int, layers: int) -> dict[str, list[Op]]:
    """Return the phases that each stream runs, in order: micro-batches alternate stage by stage."""
    order: dict[str, list[Op]] = {stream: [] for stream in schedule.stream.values()}
    for layer in range(layers):
        for stage in STAGES:
            for m in range(micro_batches):
                for phase in stage:
                    order[schedule.stream[PHASES[phase]]].append((m, phase, layer))
    return order


class _Reference:
    def __init__(self, work: Work, schedule: Schedule) -> None:
        self.work, self.schedule = work, schedule
        self.env = simpy.Environment()
        M, L, R = work.shape
        self.start_s, self.end_s, self.previous = empty_timeline(M, L, R)
        ops = [(m, phase, layer) for m in range(M) for phase in range(len(PHASES)) for layer in range(L)]
        every = [(op, rank) for op in ops for rank in range(R)]
        self.ended = {key: self.env.event() for key in every}
        # of an exchange: what one rank has for another is there; the network has drained all bytes for a rank
        self.message = {(op, sender, rank): self.env.event() for op, sender in every for rank in range(R)}
        self.drained = {key: self.env.event() for key in every}
        # what was left to drain of it when that sender began is there
        self.rest = {key: self.env.event() for key in self.message}
        self.begun: dict[Op, dict[int, float]] = {op: {} for op in ops}
        self.opened: set[Op] = set()
        # what exchanges take of each rank's compute now, and an event for every change of it
        self.sends, self.taken = work.senders(), np.asarray(work.taken)
        self.takes = [0.0] * R
        self.change = [self.env.event() for _ in range(R)]

    def run(self) -> Timeline:
        M, L, R = self.work.shape
        for ops in launch_order(self.schedule, M, L).values():
            for before, op in zip([None, *ops], ops, strict=False):
                if before is not None:
                    self.previous[op] = (before[0] * len(PHASES) + before[1]) * L + before[2]
            for rank in range(R):
                self.env.process(self._stream(rank, ops))
        self.env.run()
        return Timeline(self.start_s, self.end_s, self.previous)

    def _stream(self, rank: int, ops: list[Op]) -> Iterator[Any]:
        for op in ops:
            yield self.env.all_of([self.ended[need, rank] for need in self._needs(op)])
            self.start_s[(*op, rank)] = self.env.now
            m, phase, layer = op
            if phase in (DISPATCH, COMBINE):
                self.begun[op][rank] = self.env.now
                self._send(op, rank)
                share = float(self.taken[m, int(phase == COMBINE), layer]) if self.schedule.contends else 0.0
                self._take(rank, share)
                yield self.env.all_of([self.drained[op, rank], *self._inbound(op, rank)])
                self._take(rank, -share)
            else:
                yield from self._compute(rank, float(self.work.compute_s(phase)[m, layer, rank]))
            self.end_s[(*op, rank)] = self.env.now
            self.ended[op, rank].succeed()

    def _take(self, rank: int, share: float) -> None:
        if share:
            self.takes[rank] += share
            self.change[rank].succeed()
            self.change[rank] = self.env.event()

    def _compute(self, rank: int, left_s: float) -> Iterator[Any]:
        """Compute, slower while an exchange takes its share."""
        while True:
            begin, rate = self.env.now, 1.0 - self.takes[rank]
            done = self.env.timeout(left_s / rate)
            yield done | self.change[rank] if self.schedule.contends else done
            if done.processed:
                return
            left_s = max(left_s - (self.env.now - begin) * rate, 0.0)

    def _needs(self, op: Op) -> list[Op]:
        m, phase, layer = op
        if phase == ATTENTION:
            return [(m, COMBINE, layer - 1), (m, SHARED, layer - 1)] if layer else []
        return [(m, need, layer) for need in self.schedule.needs[phase]]

    def _send(self, op: Op, rank: int) -> None:
        m, phase, layer = op
        at = m, int(phase == COMBINE), layer
        arrive_s, own_s, word_s = self.work.arrive_s[at], self.work.own_s[at], self.work.word_s[at]
        for other in range(len(arrive_s)):
            bytes_s = own_s[rank] if self.sends[at][rank, other] else 0.0
            heard_s = word_s if self.work.everyone[at[1]] else 0.0
            self._later(self.message[op, rank, other], min(max(bytes_s, heard_s), arrive_s[other]))
            if self.sends[at][rank, other]:
                self._later(self.rest[op, rank, other], self._rest_s(op, other, float(arrive_s[other])))
        if op not in self.opened:
            self.opened.add(op)
            for other in range(len(arrive_s)):
                self._later(self.drained[op, other], arrive_s[other])

    def _rest_s(self, op: Op, rank: int, arrive_s: float) -> float:
        """Return the seconds until a rank has what those send who begin now or later."""
        at = op[0], int(op[1] == COMBINE), op[2]
        word_s = float(self.work.word_s[at])
        weight = (np.maximum(self.work.own_s[at] - word_s, 0.0) * self.sends[at][:, rank]).tolist()
        # added in the order in which they began, so that all engines round alike
        before = sorted((begun_s, other) for other, begun_s in self.begun[op].items() if begun_s < self.env.now)
        return rest_s(sum(weight[other] for _, other in before), sum(weight), arrive_s, word_s)

    def _inbound(self, op: Op, rank: int) -> list[simpy.Event]:
        m, phase, layer = op
        way = int(phase == COMBINE)
        senders = self.sends[m, way, layer, :, rank] | self.work.everyone[way]
        rest = [self.rest[op, int(other), rank] for other in self.sends[m, way, layer, :, rank].nonzero()[0]]
        return [*rest, *(self.message[op, int(other), rank] for other in senders.nonzero()[0])]

    def _later(self, event: simpy.Event, delay_s: float) -> None:
        """Let an event happen after that many seconds."""
        self.env.timeout(delay_s).callbacks.append(lambda _: event.succeed())


def run_reference(work: Work, schedule: Schedule) -> Timeline:
    """Simulate one step with the reference engine."""
    return _Reference(work, schedule).run()
