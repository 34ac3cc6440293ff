"""Deadlines do not run while kernels are compiled."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numba
import numpy as np

from moesim.placement import clock
from moesim.placement.clock import working_s


def test_compilation_takes_no_time_on_the_clock_of_deadlines():
    @numba.njit
    def total(x):
        found = 0.0
        for value in x:
            found += value * value
        return found

    wall, work = time.monotonic(), working_s()
    total(np.ones(8))
    wall, work = time.monotonic() - wall, working_s() - work
    assert wall > 0.02
    assert 0 <= work < wall / 2
    work = working_s()
    time.sleep(0.05)
    total(np.ones(8))
    assert working_s() - work >= 0.04


def test_whoever_waits_for_the_compiler_is_told_once(monkeypatch):
    now, told = [100.0], []
    compiling = clock._Compiling()
    monkeypatch.setattr(clock, "_COMPILING", compiling)
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with clock.when_compiling(lambda: told.append(now[0])):
        for nested, seconds in ((False, 4.0), (True, 0.5), (True, 1.0), (False, 9.0)):
            compiling.on_start(None)
            if nested:  # one kernel needs another
                compiling.on_start(None)
            now[0] += seconds
            if nested:
                compiling.on_end(None)
            compiling.on_end(None)
            now[0] += 60.0  # work
    assert told == [100 + 4 + 60 + 0.5 + 60 + 1]  # while the third was still at it
    assert compiling.seconds == 14.5
    compiling.on_start(None)
    now[0] += 99
    compiling.on_end(None)
    assert len(told) == 1
