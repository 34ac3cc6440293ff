"""Runners: who calls a function on many tasks; they yield results as they come, in any order.

What all tasks share is handed over once: joblib maps large arrays into the memory of its processes, Ray keeps them in
its object store.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any, Final, Protocol, TypeVar

from joblib import Parallel, delayed

from moesim.base.errors import MissingExtra
from moesim.base.registry import Registry

Task = TypeVar("Task")
Result = TypeVar("Result")


class Runner(Protocol):
    """Calls ``function(task, shared)`` for every task."""

    def __call__(
        self,
        function: Callable[[Any, Mapping[str, Any]], Any],
        tasks: Sequence[Any],
        shared: Mapping[str, Any],
        jobs: int | None,
    ) -> Iterator[Any]:
        """Yield results as they come."""
        ...


def local(
    function: Callable[[Task, Mapping[str, Any]], Result],
    tasks: Sequence[Task],
    shared: Mapping[str, Any],
    jobs: int | None = None,
) -> Iterator[Result]:
    """Run tasks in processes of this machine.

    Parameters
    ----------
    jobs
        Processes; None: as many as there are cores. One runs them here, without another process.
    """
    wanted = jobs or len(os.sched_getaffinity(0))
    if wanted == 1:
        yield from (function(task, shared) for task in tasks)
        return
    # arrays of more than a megabyte are written once and mapped by every process
    parallel = Parallel(
        n_jobs=wanted, return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs", max_nbytes="1M",
        mmap_mode="r",
    )  # fmt: skip
    # Ctrl-C goes to all processes of a terminal: those started here never see it, and this one ends them
    resource_tracker.ensure_running()  # which lets signals in again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        found = parallel(delayed(function)(task, shared) for task in tasks)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    yield from found


def ray(
    function: Callable[[Task, Mapping[str, Any]], Result],
    tasks: Sequence[Task],
    shared: Mapping[str, Any],
    jobs: int | None = None,
) -> Iterator[Result]:
    """Run tasks on a Ray cluster: that of ``RAY_ADDRESS``, or one started here with ``jobs`` workers.

    Raises
    ------
    MissingExtra
        If Ray is not installed.
    """
    try:
        import ray as library
    except ImportError:
        raise MissingExtra("ray", "ray") from None
    ours = not library.is_initialized()
    if ours:
        given = os.environ.get("RAY_ADDRESS")
        where: dict[str, Any] = {"address": given} if given else {"num_cpus": jobs, "include_dashboard": False}
        library.init(log_to_driver=False, logging_level="error", configure_logging=False, **where)
    try:
        remote = library.remote(function)
        store = library.put(dict(shared))
        waiting = [remote.remote(task, store) for task in tasks]
        while waiting:
            ready, waiting = library.wait(waiting)
            yield from library.get(ready)
    finally:
        if ours:
            library.shutdown()


RUNNERS: Final[Registry[Runner]] = Registry(
    "runner",
    {"local": "moesim.study.sweep.runners:local", "ray": "moesim.study.sweep.runners:ray"},
    "moesim.runners",
)
"""Runners by name."""
