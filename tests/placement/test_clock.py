"""Deadlines do not run while kernels are compiled."""

from __future__ import annotations

import time

import numba
import numpy as np

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
