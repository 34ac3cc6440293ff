"""Drive a running server with prompts and write the experts its routers picked as a trace."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from moesim.base.errors import InputError, MoesimError
from moesim.base.version import VERSION
from moesim.capture.dialects import Asked, Dialect
from moesim.capture.http import Server, ServerError
from moesim.capture.journal import Journal
from moesim.capture.prompts import Prompt
from moesim.spec import ModelSpec
from moesim.trace.formats.routed_experts import has_routes, reply_traces, tokens_told
from moesim.trace.parquet import TraceWriter

Progress = Callable[[int, int, int], None]
_GIVE_UP: Final = 5
"""Failures in a row after which no more prompts are sent (with those that were under way)."""
_HOPELESS: Final = (401, 403, 404, 405)


@dataclass
class Outcome:
    """What came of a capture: tokens in the trace, and what failed by number of the prompt."""

    tokens: int = 0
    requests: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    kept: Path | None = None


def capture_server(
    dialect: Dialect, server: Server, prompts: Sequence[Prompt], output: str | Path, *, asked: Asked,
    spec: ModelSpec | None = None, origin: dict[str, Any] | None = None, concurrency: int = 16, retries: int = 2,
    pause_s: float = 1.0, keep_replies: bool = False, progress: Progress | None = None,
) -> Outcome:  # fmt: skip
    """Send prompts to a server and write the routed experts of its replies as a trace file.

    Every reply is on disk before the next is looked at, in ``OUTPUT.responses.jsonl``. That file goes when all of it is
    in the trace; otherwise it stays, and the same capture sends only the prompts that are missing.

    Parameters
    ----------
    spec
        The model that is served; None takes the ``config.json`` in the folder the server names.
    concurrency
        Requests under way at a time.
    retries
        How often a request is sent again after a timeout, a broken connection or a busy server.
    pause_s
        Seconds before the first time, doubled each time.
    keep_replies
        Whether the replies stay in any case.

    Raises
    ------
    ServerError
        If the server cannot be reached, or refuses.
    InputError
        If no reply holds routed experts of the model.
    """
    if concurrency < 1 or retries < 0:
        raise InputError(f"capture: expected concurrency from 1 and retries from 0, got {concurrency} and {retries}")
    facts = {"asked": asdict(asked), **(origin or {})}
    outcome = Outcome()
    with Journal(output, facts) as journal:
        try:
            served, where = ("", "")
            if spec is None or asked.served is None:
                served, where = dialect.served(server)
            spec = spec or spec_of(where)
            journal.done -= _misfits(journal, spec)
            send = _sender(dialect, server, asked, asked.served or served, retries, pause_s)
            _drive(dialect, server, prompts, journal, send, spec, concurrency, outcome, progress)
        except ServerError as error:
            if spec is None or not journal.done:
                raise
            # what is there is written, even where the server is gone
            outcome.failed |= {prompt.number: str(error) for prompt in prompts if prompt.number not in journal.done}
        except BaseException:
            if spec is not None and journal.done:
                with contextlib.suppress(MoesimError):
                    _assemble(dialect, server, journal, output, spec, facts, outcome, interrupted=True)
            raise
        _assemble(dialect, server, journal, output, spec, facts, outcome, interrupted=bool(outcome.failed))
        if outcome.failed or keep_replies:
            outcome.kept = journal.path
        else:
            journal.remove()
    return outcome


def spec_of(where: str) -> ModelSpec:
    """Return the model in a folder that a server names; InputError where it cannot be read from here."""
    try:
        return ModelSpec.find(where)
    except InputError as error:
        problem = f"the server serves {where!r}, which tells no shape of a model ({error})"
        raise InputError(f"{problem}: give --model") from None


def _misfits(journal: Journal, spec: ModelSpec) -> set[int]:
    """Return the prompts whose replies hold no whole routing of the model: they are sent again."""
    good, all_of_them = set(), set()
    for number, reply in journal:
        all_of_them.add(number)
        with contextlib.suppress(MoesimError):
            list(reply_traces(journal.path, "", reply, spec, whole=True))
            good.add(number)
    return all_of_them - good


def traffic_of(
    dialect: Dialect, server: Server, prompts: Sequence[Prompt], asked: Asked, *, concurrency: int = 16,
    retries: int = 2, pause_s: float = 1.0, progress: Progress | None = None,
) -> Callable[[], None]:  # fmt: skip
    """Return a function that sends prompts and drops the replies: traffic for the server's own recorder.

    It raises ServerError where no prompt is answered.
    """

    def run() -> None:
        model = asked.served or dialect.served(server)[0]
        send = _sender(dialect, server, asked, model, retries, pause_s, routes=False)
        tokens = failed = 0
        for done, (_, reply) in enumerate(_in_turn(send, prompts, concurrency), 1):
            if isinstance(reply, ServerError):
                failed += 1
                if failed == len(prompts) or (failed >= _GIVE_UP and not tokens):
                    raise reply
            else:
                tokens += max(1, tokens_told(reply) or 0)
            if progress is not None:
                progress(done, len(prompts), tokens)

    return run


Sent = tuple[Prompt, "dict[str, Any] | ServerError"]


def _sender(
    dialect: Dialect, server: Server, asked: Asked, model: str, retries: int, pause_s: float, routes: bool = True
) -> Callable[[Prompt], Sent]:
    def send(prompt: Prompt) -> Sent:
        path, content = dialect.request(prompt, asked, model)
        if not routes:
            content.pop("return_routed_experts", None)
        for attempt in range(retries + 1):
            try:
                return prompt, server.post(path, content)
            except ServerError as error:
                last = error
                if not error.again or attempt == retries:
                    break
                time.sleep(pause_s * 2**attempt)
        return prompt, last

    return send


def _drive(
    dialect: Dialect, server: Server, prompts: Sequence[Prompt], journal: Journal, send: Callable[[Prompt], Sent],
    spec: ModelSpec, concurrency: int, outcome: Outcome, progress: Progress | None,
) -> None:  # fmt: skip
    """Send what is missing; the first reply is looked at before any other prompt is sent."""
    waiting = [prompt for prompt in prompts if prompt.number not in journal.done]
    tokens = 0
    refused = 0
    for prompt, reply in _in_turn(send, waiting, concurrency):
        if isinstance(reply, ServerError):
            outcome.failed[prompt.number] = str(reply)
            # once prompts were answered, one that is refused says nothing of the next; a silent server does
            refused += reply.again or not tokens
            if reply.status in _HOPELESS or refused >= _GIVE_UP + (concurrency if tokens else 0):
                raise reply
        elif not has_routes(reply):
            problem = "the reply holds no routed experts; start the server with  " + dialect.start
            outcome.failed[prompt.number] = problem
            if not tokens:
                raise InputError(f"{dialect.name} at {server.url}: {problem}")
        else:
            journal.append(prompt.number, prompt.domain, reply)
            refused = 0
            if not tokens:
                _check_first(journal, prompt, reply, spec)
            tokens += max(1, tokens_told(reply) or 0)
        if progress is not None:
            progress(len(journal.done) + len(outcome.failed), len(prompts), tokens)


def _check_first(journal: Journal, prompt: Prompt, reply: dict[str, Any], spec: ModelSpec) -> None:
    try:
        list(reply_traces("reply", f"prompt {prompt.number}", reply, spec, whole=True))
    except MoesimError as error:
        raise InputError(f"{error}; no more prompts were sent, the reply is kept in {journal.path}") from None


def _in_turn(send: Callable[[Prompt], Sent], prompts: Sequence[Prompt], concurrency: int) -> Iterator[Sent]:
    """Yield replies as they come; at first one request is under way, until one has succeeded.

    Threads are daemons: one that waits for a slow server does not hold the process when it is stopped.
    """
    left = iter(prompts)
    for prompt in left:
        sent = send(prompt)
        yield sent
        if not isinstance(sent[1], ServerError):
            break
    todo: queue.SimpleQueue[Prompt | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[Sent | BaseException] = queue.SimpleQueue()
    rest = list(left)
    for prompt in rest:
        todo.put(prompt)
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            try:
                prompt = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put(send(prompt)) if prompt is not None else None
            except BaseException as error:
                done.put(error)

    try:
        for _ in range(min(concurrency, len(rest))):
            threading.Thread(target=work, daemon=True).start()
        for _ in rest:
            # a timeout, so that signals are seen
            found = _next(done)
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        stopped.set()


def _next(done: queue.SimpleQueue[Sent | BaseException]) -> Sent | BaseException:
    while True:
        try:
            return done.get(timeout=0.5)
        except queue.Empty:
            continue


def _assemble(
    dialect: Dialect, server: Server, journal: Journal, output: str | Path, spec: ModelSpec, facts: dict[str, Any],
    outcome: Outcome, *, interrupted: bool,
) -> None:  # fmt: skip
    """Write the replies in the journal as a trace; those that do not fit the model are named and stay."""
    origin = {
        "captured_by": f"moesim {VERSION}",
        "engine": dialect.name,
        "url": server.url,
        "model": spec.name,
        "synthetic": False,
        "steps": "not recorded: what ran together in the server is not told",
        **facts,
    }
    if interrupted:
        origin["interrupted"] = True
    with TraceWriter(output, spec, origin, keep_partial=False) as writer:
        written: set[int] = set()
        for number, reply in journal:
            if number in written:
                continue
            try:
                parts = list(reply_traces(journal.path, f"prompt {number}", reply, spec, number=number, whole=True))
            except MoesimError as error:
                outcome.failed[number] = str(error)
                continue
            for part in parts:
                writer.append(part)
            written.add(number)
            outcome.failed.pop(number, None)
        outcome.tokens, outcome.requests = writer.rows, len(written)
        if not writer.rows:
            number, problem = next(iter(outcome.failed.items()), (0, "no reply"))
            raise InputError(f"nothing was captured; prompt {number}: {problem}")
        if outcome.failed:
            writer.origin["interrupted"] = True
