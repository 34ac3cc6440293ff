"""Background work: once, stoppable, bounded, and honest about failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import ModuleType

import pytest

from moesim.base.errors import InputError
from moesim.solve.progress import Progress

from .conftest import APP


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(APP))
    import dash_jobs

    return dash_jobs


def test_one_key_is_one_job_until_it_fails(jobs: ModuleType):
    calls = []

    def work(job):
        calls.append(job)
        if len(calls) == 1:
            raise InputError("no luck")
        return 42

    first = jobs.submit("k1", "first", work)
    assert first.finished.wait(60)
    assert first.error == "no luck"
    second = jobs.submit("k1", "second", work)
    assert second is not first
    assert second.finished.wait(60)
    assert second.result == 42
    assert jobs.submit("k1", "third", work) is second
    assert len(calls) == 2


def test_a_bug_is_told_without_its_inside(jobs: ModuleType):
    job = jobs.submit("k2", "broken", lambda job: {}["secret"])
    assert job.finished.wait(60)
    assert "secret" not in job.error
    assert "log" in job.error


def test_a_stop_is_heard_and_the_curve_is_kept(jobs: ModuleType):
    begun = threading.Event()

    def work(job):
        job.watcher("ours")(Progress(1.0, 2e-3, "search", 0.5))
        begun.set()
        while not job.stopped():
            pass
        return "best so far"

    job = jobs.submit("k3", "search", work, limit_s=1000.0)
    assert begun.wait(60)
    assert job.running
    assert job.share == 0.5
    job.stop()
    assert job.finished.wait(60)
    assert (job.result, job.curves) == ("best so far", {"ours": [(1.0, 2e-3)]})


def test_only_so_many_long_ones_run_at_once_and_short_ones_do_not_wait_for_them(jobs: ModuleType):
    release = threading.Event()
    running = [jobs.submit(f"k4-{i}", "long", lambda job: release.wait(120), limit_s=60.0) for i in range(3)]
    end = time.monotonic() + 60
    while sum(job.stage == "starting" for job in running) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    (waiting,) = [job for job in running if job.stage == "waiting in line"]
    assert jobs.submit("k4-short", "short", lambda job: 1).finished.wait(60)
    waiting.stop()
    release.set()
    assert all(job.finished.wait(120) for job in running)
    assert "stopped" in waiting.error


def test_results_are_kept_only_so_far(jobs: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "_KEPT", 5)
    for i in range(12):
        assert jobs.submit(f"k5-{i}", "small", lambda job: None).finished.wait(60)
    assert len(jobs._jobs) <= 6
    assert jobs.find("k5-11") is not None
