"""How much of the unevenness that a trace shows is chance: it holds the requests that happened to come."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from moesim.base.arrays import Array
from moesim.trace import Trace
from moesim.trace.kernels import count_picks

_GROUPS: Final = 256
"""Most groups that requests are counted in: what they differ by follows as well from groups of several."""
_RUNS: Final = 8
"""Runs of tokens that stand in for requests where these were not recorded."""


def chance(trace: Trace, rows: Array) -> NDArray[np.float64]:
    """Return the part of each layer's unevenness of popularity that is put down to chance, 0 to 1, float64 [layers].

    Popularity of an expert is its part of a layer's picks. Its sampling error follows from how requests differ, as
    tokens of one request are alike; the part is the sum over experts of these errors squared, over that of what
    popularity is off the even one (of which errors are a part). So much the best guess of popularity lies nearer to
    even than what was seen (James and Stein, with errors of the whole request as unit).

    Parameters
    ----------
    rows
        Rows of the trace that count [rows].

    Notes
    -----
    Where all tokens are of one request, or hardly any request has two, requests were not recorded or tell nothing, and
    equal runs of tokens stand in for them.
    """
    assert trace.routes is not None  # only rows of tokens are searched with
    requests, unit = np.unique(trace.request[rows], return_inverse=True)
    if recorded(len(requests), len(rows)):
        unit %= _GROUPS
    else:
        unit = np.arange(len(rows)) * _RUNS // len(rows)
    groups = int(unit.max()) + 1
    picks = count_picks(trace.routes[rows], unit, groups, trace.spec.experts).astype(np.float64)
    total = picks.sum(axis=2, keepdims=True)
    all_picks = total.sum(axis=0)
    seen = picks.sum(axis=0) / np.maximum(all_picks, 1)
    off = (picks - total * seen) / np.maximum(all_picks, 1)
    errors = np.square(off).sum(axis=(0, 2)) * groups / max(groups - 1, 1)
    uneven = np.square(seen - seen.mean(axis=1, keepdims=True)).sum(axis=1)
    return np.asarray(np.minimum(errors / np.where(uneven > 0, uneven, np.inf), 1.0))


def recorded(requests: int, rows: int) -> bool:
    """Return whether so many requests of so many rows tell what tokens belong together."""
    return requests > 1 and rows >= 2 * requests
