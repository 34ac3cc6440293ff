"""Which tokens the search looks at, at home where, in which window."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.solve.problem import Problem


class Rows(NamedTuple):
    """A sample of the traffic: ``routes`` int16 [rows, layers, picks]; ``home``, ``window``, ``key`` [rows]."""

    routes: NDArray[np.int16]
    home: NDArray[np.int32]
    window: NDArray[np.int32]
    key: NDArray[np.int64]
    windows: int


def sample_each(problem: Problem, count: int) -> Rows:
    """Return about ``count`` rows, equally many of every window of the problem, which are then the windows of the rows.

    For objectives that look at single windows, which must not be mixed or thinned out.
    """
    parts = [
        sample_rows(dataclasses.replace(problem, batches=(window,)), -(-count // len(problem.batches)), 1)
        for window in problem.batches
    ]
    number = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.home) for part in parts])
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ("routes", "home", "key"))
    routes, home, key = columns
    return Rows(routes, home, number, key, len(parts))


def sample_rows(problem: Problem, count: int, windows: int) -> Rows:
    """Return about ``count`` rows in equal windows, in the order in which the traffic ran.

    Every token of the batches is used equally often, give or take one. Homes are dealt anew: which rank a request
    lives on is the scheduler's choice and differs the next time, and a placement fitted to it would not hold. Each
    window keeps the number of tokens per rank.
    """
    rng = np.random.default_rng([problem.seed, 1])
    trace = problem.batches[0].trace
    token = np.concatenate([window.token for window in problem.batches])
    homes = np.concatenate([window.home for window in problem.batches])
    # tokens in order of appearance; a resampled trace holds each several times
    unique, first = np.unique(token, return_index=True)
    unique = unique[np.argsort(first, kind="stable")]
    whole, rest = divmod(count, len(unique))
    times = np.full(len(unique), whole)
    times[np.sort(rng.choice(len(unique), rest, replace=False))] += 1
    rows = np.repeat(unique, times)
    window = (np.arange(len(rows)) * windows // len(rows)).astype(np.int32)
    # homes as often as in the batches, spread evenly over every window
    dealt = np.sort(homes)[(np.arange(len(rows)) * len(homes)) // len(rows)]
    home = np.empty(len(rows), np.int32)
    for index in range(windows):
        members = np.flatnonzero(window == index)
        home[members] = rng.permutation(dealt[index::windows][: len(members)])
    key = np.empty(len(rows), np.int64)
    for rank in range(problem.ranks):
        mine = np.flatnonzero(home == rank)
        # vLLM hashes the row of a token in its rank's batch
        key[mine] = (rng.permutation(len(mine)) * 2654435769) & 0xFFFFFFFF
    routes = np.ascontiguousarray(trace.routes[rows])  # type: ignore[index]  # batches have routes
    return Rows(routes, home, window, key, windows)
