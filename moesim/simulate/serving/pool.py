"""A pool: ranks that step together, with continuous batching, chunked prefill and a KV cache of limited size.

Attention is data parallel: a request lives on one rank. Experts are spread over all ranks, so that all step together:
a step takes what the step model says of all their tokens, and a rank without tokens steps along.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import simpy

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.simulate.serving.ledger import Ledger
from moesim.simulate.serving.model import StepBatch, StepModel
from moesim.simulate.serving.schedulers import Scheduler, View

_MOST: Final = 2**40
"""No rank takes so much; what is far above overflows the arrays."""


@dataclass(frozen=True)
class Limits:
    """What a rank can take.

    Parameters
    ----------
    tokens
        Tokens of one step: decode tokens of running requests first, then chunks of prompts.
    requests
        Requests that run at a time.
    kv_tokens
        Tokens whose keys and values fit.
    """

    tokens: int = 2048
    requests: int = 256
    kv_tokens: int = 500_000

    def __post_init__(self) -> None:
        if min(self.tokens, self.requests, self.kv_tokens) < 1:
            raise InputError(f"serving: limits of a rank must be at least 1, got {self}")
        if max(self.tokens, self.requests, self.kv_tokens) > _MOST:
            raise InputError(f"serving: limits of a rank must be at most {_MOST}, got {self}")


class Pool:
    """Ranks that step together.

    Parameters
    ----------
    env
        The simpy environment.
    name
        For reports: ``"all"``, ``"prefill"``, ``"decode"``.
    ranks, limits
        Number of ranks; what each can take.
    model, scheduler
        Step model; who chooses the rank of a request.
    ledger
        Where what happens is written down.
    affinity
        For the scheduler.
    hand_over
        Called with a request whose prompt is done, instead of decoding here; it says whether it took it.
    """

    def __init__(
        self,
        env: simpy.Environment,
        name: str,
        ranks: int,
        limits: Limits,
        model: StepModel,
        scheduler: Scheduler,
        ledger: Ledger,
        affinity: Callable[[int], Array],
        hand_over: Callable[[int], None] | None = None,
    ) -> None:
        self.env, self.name, self.limits, self.model, self.scheduler = env, name, limits, model, scheduler
        self.ledger, self.hand_over, self.ranks = ledger, hand_over, ranks
        self.alive = np.ones(ranks, bool)
        self.view = View(np.zeros(ranks, np.int64), np.zeros(ranks, np.int64), self.alive, affinity)
        self.queue: list[deque[int]] = [deque() for _ in range(ranks)]
        self.begun: list[list[int]] = [[] for _ in range(ranks)]
        self.decoding = np.zeros(0, np.int64)
        self.kv = np.zeros(ranks, np.int64)
        self.home = np.full(ledger.requests, -1, np.int64)
        self.held = np.zeros(ledger.requests, np.int64)
        self.target = np.zeros(ledger.requests, np.int64)
        self.filled = np.zeros(ledger.requests, np.int64)
        self.arrived_full = np.zeros(ledger.requests, bool)
        self.busy_s = np.zeros(ranks)
        self.stepping_s = 0.0
        self.paused_until = 0.0
        self.pending: list[Callable[[], None]] = []
        self.wake = env.event()
        env.process(self._run())

    def submit(self, request: int, full: bool = False) -> None:
        """Take a request; ``full`` if its prompt was computed elsewhere and its KV cache is here."""
        rank = self.scheduler(self.view, request)
        self.view.sent += 1
        self.home[request] = rank
        # of what was generated, the last token has no keys and values yet
        self.target[request] = self.ledger.prompt[request] + self.ledger.generated[request] - full
        self.arrived_full[request] = full
        self.queue[rank].append(request)
        self.view.waiting[rank] += 1
        self._wake()

    def at_next_step(self, action: Callable[[], None]) -> None:
        """Do something when the step that is under way has ended."""
        self.pending.append(action)
        self._wake()

    def _wake(self) -> None:
        if not self.wake.triggered:
            self.wake.succeed()

    def lose(self, ranks: Array) -> None:
        """Ranks are gone: what they held begins anew elsewhere."""
        self.alive[ranks] = False
        if not self.alive.any():
            raise InputError(f"serving: no rank of pool {self.name} is left")
        gone = np.isin(self.home[self.decoding], ranks)
        again = self.decoding[gone].tolist()
        done = np.zeros(self.ledger.requests, bool)
        done[again] = True
        self.decoding = self.decoding[~gone]
        for rank in np.asarray(ranks).tolist():
            again += [*self.begun[rank], *self.queue[rank]]
            self.begun[rank].clear()
            self.queue[rank].clear()
            self.kv[rank] = self.view.waiting[rank] = self.view.running[rank] = 0
        for request in sorted(again):
            # what was computed for it here, or elsewhere and sent here
            elsewhere = self.target[request] * self.arrived_full[request]
            here = max(self.filled[request], self.held[request] * done[request])
            self.ledger.recomputed[request] += max(here, elsewhere)
            self.held[request] = self.filled[request] = 0
            self.submit(request)

    def _run(self) -> Iterator[Any]:
        while True:
            for action in self.pending:
                action()
            self.pending.clear()
            if self.paused_until > self.env.now:
                yield self.env.timeout(self.paused_until - self.env.now)
            self._admit()
            batch, chunks = self._batch()
            if batch is None:
                self.wake = self.env.event()
                yield self.wake
                continue
            seconds, busy = self.model(batch)
            running, decoded = self.decoding, len(self.decoding)
            yield self.env.timeout(seconds)
            self.busy_s += busy
            self.stepping_s += seconds
            self.ledger.step(self.name, self.env.now, seconds, decoded, int(batch.count.sum()) - decoded, self._waiting)
            self._decoded(running)
            self._prefilled(chunks)

    @property
    def _waiting(self) -> int:
        return int(self.view.waiting.sum())

    def _admit(self) -> None:
        """Let waiting requests in, first come first served, while a rank has places and cache for them."""
        for rank in np.flatnonzero(self.view.waiting).tolist():
            queue = self.queue[rank]
            while queue:
                request, running = queue[0], int(self.view.running[rank]) + len(self.begun[rank])
                need = int(self.target[request])
                if running >= self.limits.requests or self.kv[rank] + need > self.limits.kv_tokens:
                    break
                queue.popleft()
                self.kv[rank] += need
                self.held[request] = need
                if self.arrived_full[request]:
                    self.filled[request] = need
                    self.view.waiting[rank] -= 1
                    self._begin_decoding(request)
                else:
                    self.filled[request] = 0
                    self.begun[rank].append(request)

    def _batch(self) -> tuple[StepBatch | None, list[tuple[int, int]]]:
        """Return the tokens of the next step, and the chunks of prompts among them as (request, tokens)."""
        self._make_room()
        room = self.limits.tokens - np.bincount(self.home[self.decoding], minlength=self.ranks)
        chunks: list[tuple[int, int]] = []
        for rank in np.flatnonzero(self.view.waiting).tolist():
            left = int(room[rank])
            for request in self.begun[rank]:
                if left <= 0:
                    break
                take = min(left, int(self.target[request] - self.filled[request]))
                chunks.append((request, take))
                left -= take
        if not len(self.decoding) and not chunks:
            return None, []
        ids = self.decoding
        asked = np.array(chunks, dtype=np.int64).reshape(-1, 2)
        who = np.concatenate([ids, asked[:, 0]])
        said = self.ledger.generated[ids]
        batch = StepBatch(
            request=who,
            home=self.home[who],
            # the token that is computed is the last one generated
            start=np.concatenate([said - 1, self.filled[asked[:, 0]]]),
            count=np.concatenate([np.ones(len(ids), np.int64), asked[:, 1]]),
            before=np.concatenate([self.held[ids], self.filled[asked[:, 0]]]),
            answer=np.arange(len(who)) < len(ids),
        )
        return batch, chunks

    def _make_room(self) -> None:
        """Every running request is about to write one token: where the cache is full, the youngest ones stop."""
        if not len(self.decoding):
            return
        need = self.kv + np.bincount(self.home[self.decoding], minlength=self.ranks)
        for rank in np.flatnonzero(need > self.limits.kv_tokens).tolist():
            while len(here := self.decoding[self.home[self.decoding] == rank]) > 1 and (
                self.kv[rank] + len(here) > self.limits.kv_tokens
            ):
                request = int(here[-1])
                self.decoding = self.decoding[self.decoding != request]
                self.kv[rank] -= self.held[request]
                self.ledger.preempted += 1
                self.ledger.recomputed[request] += self.held[request]
                self.held[request] = self.filled[request] = 0
                self.target[request] = self.ledger.prompt[request] + self.ledger.generated[request]
                self.arrived_full[request] = False
                self.view.running[rank] -= 1
                self.view.waiting[rank] += 1
                self.queue[rank].appendleft(request)

    def _decoded(self, ids: Array) -> None:
        """The running requests of a step have one token more."""
        if not len(ids):
            return
        self.held[ids] += 1
        self.kv += np.bincount(self.home[ids], minlength=self.ranks)
        self.ledger.generated[ids] += 1
        ended = self.ledger.generated[ids] >= self.ledger.output[ids]
        if ended.any():
            done = ids[ended]
            self.decoding = ids[~ended]
            np.subtract.at(self.kv, self.home[done], self.held[done])
            np.subtract.at(self.view.running, self.home[done], 1)
            self.ledger.finish_s[done] = self.env.now

    def _prefilled(self, chunks: list[tuple[int, int]]) -> None:
        """Chunks of prompts are done; a prompt that is complete has said its first token."""
        for request, tokens in chunks:
            self.filled[request] += tokens
            if self.filled[request] < self.target[request]:
                continue
            rank = int(self.home[request])
            self.begun[rank].remove(request)
            self.view.waiting[rank] -= 1
            self.ledger.said(request, self.env.now)
            if self.ledger.generated[request] >= self.ledger.output[request]:
                self.kv[rank] -= self.held[request]
                self.ledger.finish_s[request] = self.env.now
            elif self.hand_over is not None:
                self.kv[rank] -= self.held[request]
                self.hand_over(request)
            else:
                self._begin_decoding(request)

    def _begin_decoding(self, request: int) -> None:
        self.view.running[self.home[request]] += 1
        self.decoding = np.append(self.decoding, request)
