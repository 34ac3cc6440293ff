"""Work in the background: it outlives page switches, tells how far it is, can be stopped, and is done once.

Jobs belong to the server, not to a page or a browser tab, and are found by the digest of what they are made from: the
same question asked twice is answered once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from moesim.base.errors import MoesimError
from moesim.solve.progress import Progress

_AT_ONCE = {True: 2, False: 3}
"""Long and short jobs that compute at a time; others of their kind wait in line."""
_KEPT = 96
"""Finished jobs whose results are kept."""
_slots = {long: threading.Semaphore(count) for long, count in _AT_ONCE.items()}
_lock = threading.Lock()
_jobs: OrderedDict[str, Job] = OrderedDict()


class Stopped(Exception):
    """Raised inside a job that was asked to stop before it had anything to show."""


class Job:
    """One piece of work in a thread of its own."""

    def __init__(self, key: str, label: str, work: Callable[[Job], Any], limit_s: float | None = None) -> None:
        self.key, self.label, self._work, self.limit_s = key, label, work, limit_s
        self.curves: dict[str, list[tuple[float, float]]] = {}
        self.stage, self.done_share = "waiting in line", 0.0
        self.result: Any = None
        self.error = ""
        self.finished = threading.Event()
        self._stop = threading.Event()
        self.began = time.monotonic()
        self.seconds = 0.0
        # a daemon: closing the server must not wait for a solver
        threading.Thread(target=self._run, name=f"moesim-{label}", daemon=True).start()

    def _run(self) -> None:
        # what has a time limit may take all of it: it must not keep pages waiting
        with _slots[self.limit_s is not None]:
            try:
                if self._stop.is_set():
                    raise Stopped
                self.stage = "starting"
                self.result = self._work(self)
            except MoesimError as error:
                self.error = str(error)
            except Stopped:
                self.error = "stopped before there was a result"
            except Exception:
                logging.getLogger("moesim.app").exception("job %s failed", self.label)
                self.error = "an unexpected error; the server's log has the details"
            finally:
                self.seconds = time.monotonic() - self.began
                self.finished.set()

    @property
    def running(self) -> bool:
        return not self.finished.is_set()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began if self.running else self.seconds

    @property
    def share(self) -> float:
        """Part of the work or of the time limit that is over, whichever is more."""
        time_share = self.elapsed_s / self.limit_s if self.limit_s else 0.0
        return min(1.0, max(self.done_share, time_share))

    def say(self, stage: str, done_share: float | None = None) -> None:
        """Tell what is being done; ends the job here where it was stopped before the first result."""
        self.stage = stage
        if done_share is not None:
            self.done_share = done_share

    def watcher(self, name: str) -> Callable[[Progress], None]:
        """Return what a solver calls with its progress."""
        curve = self.curves.setdefault(name, [])

        def watch(point: Progress) -> None:
            curve.append((point.seconds, point.best_s))
            if point.done is not None:
                self.done_share = point.done

        return watch

    def stop(self) -> None:
        """Ask the work to end with the best so far."""
        self._stop.set()

    def stopped(self) -> bool:
        return self._stop.is_set()


def submit(key: str, label: str, work: Callable[[Job], Any], limit_s: float | None = None) -> Job:
    """Return the job of that key, begun now if there was none; one that failed is begun anew."""
    with _lock:
        job = _jobs.get(key)
        if job is not None and not (job.finished.is_set() and job.error):
            _jobs.move_to_end(key)
            return job
        job = _jobs[key] = Job(key, label, work, limit_s)
        _jobs.move_to_end(key)
        for old in [name for name, one in _jobs.items() if one.finished.is_set()][: max(0, len(_jobs) - _KEPT)]:
            del _jobs[old]
        return job


def find(key: str) -> Job | None:
    """Return the job of that key, running or done."""
    with _lock:
        return _jobs.get(key)


def forget(key: str) -> None:
    """Forget a finished job, so that its work can be done anew."""
    with _lock:
        job = _jobs.get(key)
        if job is not None and job.finished.is_set():
            del _jobs[key]
