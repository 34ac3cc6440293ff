"""Progress of long captures on stderr, and stopping them softly."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from moesim.base.units import count
from moesim.cli import screen

_EVERY_S: Final = 10.0
"""Seconds between lines where stderr is no terminal."""


@contextmanager
def prompts_bar(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """Yield a function of prompts done, of how many, and tokens captured: a bar, or lines where no terminal is."""
    begin = time.monotonic()
    if not sys.stderr.isatty():
        last = [begin - _EVERY_S]

        def line(done: int, total: int, tokens: int) -> None:
            now = time.monotonic()
            if done == total or now - last[0] >= _EVERY_S:
                last[0] = now
                screen.say(
                    f"[{now - begin:6.1f} s] {what}: {done} of {count(total, 'prompt')}, {count(tokens, 'token')}"
                )

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("prompts"), (
        TextColumn("{task.fields[tokens]:,} tokens")
    ), TimeRemainingColumn()  # fmt: skip
    with Progress(*columns, console=screen.stderr()) as bar:
        task = bar.add_task(what, total=None, tokens=0)
        yield lambda done, total, tokens: bar.update(task, completed=done, total=total, tokens=tokens)


@contextmanager
def soft_stop(output: Path) -> Iterator[None]:
    """Make SIGTERM, which batch systems send before they kill, end a capture as Ctrl-C does: with what it has."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, stop)
    before = output.stat().st_mtime_ns if output.exists() else None
    try:
        yield
    except KeyboardInterrupt:
        if output.exists() and output.stat().st_mtime_ns != before:
            screen.say(f"interrupted: wrote what was captured to {output}")
        raise
    finally:
        signal.signal(signal.SIGTERM, earlier)
