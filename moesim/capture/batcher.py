"""Continuous batching: which tokens of which requests run together in a step.

As in serving engines, a bounded number of requests runs at a time; each step takes one decode token of every
request whose prompt is done and fills the rest of its token budget with pieces of prompts, oldest request first;
a request is admitted as soon as another one ends. The batcher only schedules: who calls it runs the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from moesim.base.errors import InputError


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Parameters
    ----------
    prompt
        Token ids, at least one.
    new_tokens
        Most tokens that are generated and fed back; 0 for prefill alone.
    domain
        Code of the domain, for the trace.
    """

    prompt: tuple[int, ...]
    new_tokens: int = 0
    domain: int = 0


@dataclass(frozen=True)
class Work:
    """Consecutive tokens of one request that run in one step.

    Parameters
    ----------
    request, domain
        Number of the request in the order of arrival, and its domain code.
    slot
        Which of the running requests it is, 0..slots-1: its place in a KV cache.
    start
        Position of the first of the tokens.
    tokens
        Token ids.
    decode
        Whether the token was generated.
    sample
        Whether the model's prediction after the last token is wanted.
    """

    request: int
    domain: int
    slot: int
    start: int
    tokens: tuple[int, ...]
    decode: bool
    sample: bool


@dataclass
class _Running:
    number: int
    request: Request
    slot: int
    done: int = 0
    generated: list[int] = field(default_factory=list)


class Batcher:
    """Schedules requests, step by step; memory is bounded by the running requests.

    Iterate for the steps (lists of `Work`). After each step, and before the next, call `grow` for every work whose
    ``sample`` is set, or `end` if its request shall stop early.

    Parameters
    ----------
    requests
        Requests in order of arrival; drawn only when there is a free slot.
    slots
        Most requests that run at a time.
    step_tokens
        Most tokens of a step; at least `slots`, so that every running request can decode.
    chunk
        Most prompt tokens of one request in one step.
    """

    def __init__(self, requests: Iterable[Request], *, slots: int, step_tokens: int, chunk: int) -> None:
        if slots < 1 or chunk < 1 or step_tokens < slots:
            raise InputError(
                f"batcher: slots {slots} and chunk {chunk} must be at least 1, step_tokens {step_tokens} at least slots"
            )
        self._waiting = enumerate(requests)
        self._free = list(range(slots - 1, -1, -1))
        self._running: dict[int, _Running] = {}
        self._due: set[int] = set()
        self._step_tokens, self._chunk = step_tokens, chunk

    def __iter__(self) -> Iterator[list[Work]]:
        while True:
            if self._due:
                raise InputError(f"batcher: requests {sorted(self._due)} await `grow` or `end` before the next step")
            self._admit()
            if not self._running:
                return
            yield self._step()

    def grow(self, request: int, token: int) -> None:
        """Append a generated token to a request; it is fed to the model in the next step."""
        self._due.discard(request)
        self._running[request].generated.append(token)

    def end(self, request: int) -> None:
        """Stop a request and free its slot."""
        self._due.discard(request)
        self._free.append(self._running.pop(request).slot)

    def _admit(self) -> None:
        while self._free:
            arrival = next(self._waiting, None)
            if arrival is None:
                return
            number, request = arrival
            if not request.prompt or request.new_tokens < 0:
                raise InputError(
                    f"request {number}: expected at least 1 prompt token and 0 new ones, "
                    f"got {len(request.prompt)} and {request.new_tokens}"
                )
            self._running[number] = _Running(number, request, self._free.pop())

    def _step(self) -> list[Work]:
        works = []
        budget = self._step_tokens
        running = list(self._running.values())
        # decode first: a step never makes a running request wait for somebody's long prompt
        for one in (r for r in running if r.done >= len(r.request.prompt)):
            works.append(self._work(one, (one.generated[-1],), decode=True))
            budget -= 1
        for one in (r for r in running if r.done < len(r.request.prompt)):
            tokens = one.request.prompt[one.done : one.done + min(self._chunk, budget)]
            if tokens:
                works.append(self._work(one, tokens, decode=False))
                budget -= len(tokens)
        for work in works:
            one = self._running[work.request]
            one.done += len(work.tokens)
            if work.sample:
                self._due.add(work.request)
            elif one.done == len(one.request.prompt) + one.request.new_tokens:
                self.end(work.request)
        return works

    def _work(self, one: _Running, tokens: tuple[int, ...], *, decode: bool) -> Work:
        stop = one.done + len(tokens)
        prompt, last = len(one.request.prompt), len(one.request.prompt) + one.request.new_tokens
        return Work(one.number, one.request.domain, one.slot, one.done, tokens, decode, sample=prompt <= stop < last)
