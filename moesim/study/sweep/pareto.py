"""Which points no other point beats in both of two columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.arrays import Array


def front(x: ArrayLike, y: ArrayLike, x_goal: str = "min", y_goal: str = "min") -> Array:
    """Return the numbers of the points on the Pareto front, from best x to best y.

    A point is on it if no other is at least as good in both columns and better in one; of equal points the first.
    Points that are not finite in either column never are.

    Parameters
    ----------
    x, y
        Values of each point ``[points]``.
    x_goal, y_goal
        ``"min"`` or ``"max"``: which way each is better.
    """
    a = np.asarray(x, np.float64) * (1 if x_goal == "min" else -1)
    b = np.asarray(y, np.float64) * (1 if y_goal == "min" else -1)
    usable = np.flatnonzero(np.isfinite(a) & np.isfinite(b))
    kept, best = [], np.inf
    for point in usable[np.lexsort((usable, b[usable], a[usable]))]:
        if b[point] < best:
            kept.append(int(point))
            best = b[point]
    return np.array(kept, dtype=np.int64)
