"""The fast path is balanced and near its bound; the EPLBs it is timed beside are EPLB."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.solve.eplb import rebalance
from moesim.solve.fast import LOADS, SOLVERS_TIMED, eplb_by_elements, eplb_by_layers, fast_path, fast_table, loads
from moesim.solve.packing import rank_loads


@pytest.mark.parametrize("kind", LOADS)
@pytest.mark.parametrize(("slots", "ranks"), [(72, 8), (80, 16)])
def test_eplb_by_numpy_and_by_loops_loads_ranks_as_eplb_does(kind: str, slots: int, ranks: int) -> None:
    load = loads(kind, 3, 64)
    theirs, _ = rebalance(load, slots, ranks=ranks, hierarchical=False)
    wanted = np.sort(rank_loads(theirs.reshape(3, ranks, -1), load), axis=1)
    for eplb in (eplb_by_layers, eplb_by_elements):
        np.testing.assert_allclose(np.sort(rank_loads(eplb(load, slots, ranks), load), axis=1), wanted)


def test_at_full_size_the_fast_path_is_balanced_and_proven_to_be_near_the_best() -> None:
    ours = {"fast path": SOLVERS_TIMED["fast path"]}
    rows = fast_path(58, 256, solvers=ours, repeat=1)
    assert len(rows) == 6
    for row in rows:
        assert row["balance"] >= 0.998 - 1e-4
        assert 0 <= row["gap"] <= 0.01
    assert fast_table(rows).count("fast path") == 6
