"""What the search balances: what was seen, and traffic of kinds that were not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import InputError
from moesim.solve import Objective, solve
from moesim.solve.search.rows import with_unseen
from tests.solve.conftest import tiny_cluster, tiny_spec, tiny_trace
from tests.solve.test_sharing import least


def test_how_much_traffic_is_taken_to_be_unseen() -> None:
    assert Objective("load").unseen_share(1, 8) == 1 / 2
    assert Objective("load").unseen_share(4, 8) == 1 / 5
    assert Objective("load").unseen_share(1, 1) == 0  # nothing tells kinds of traffic apart
    assert Objective("time").unseen_share(1, 8) == 0
    assert Objective("time", unseen=0.25).unseen_share(1, 1) == 0.25
    assert Objective("load", unseen=0.0).unseen_share(1, 8) == 0
    for wrong in (-0.1, 1.0):
        with pytest.raises(InputError, match=f"unseen: expected a share of 0 to 0.9, got {wrong}"):
            Objective(unseen=wrong)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scenarios=st.integers(1, 12), share=st.floats(0.05, 0.8))
def test_unseen_scenarios_deal_what_was_seen_anew(seed: int, scenarios: int, share: float) -> None:
    demand = np.random.default_rng(seed).lognormal(0, 1, (scenarios, 3, 16))
    found = with_unseen(demand, share, 40, seed)
    assert len(found) >= 20  # few scenarios are repeated
    more = round(share * len(found))
    repeats = (len(found) - more) // scenarios
    more = len(found) - repeats * scenarios
    assert abs(more - share * len(found)) <= 1
    np.testing.assert_array_equal(found[:-more], np.tile(demand, (repeats, 1, 1)))
    for index, dealt in enumerate(found[-more:]):
        seen = demand[index % scenarios]
        np.testing.assert_array_equal(np.sort(dealt), np.sort(seen))
        assert (dealt != seen).any(axis=1).all()
    assert len(np.unique(found[-more:], axis=0)) == more
    np.testing.assert_array_equal(with_unseen(demand, 0.0, 40, seed), demand)


def test_a_plan_for_unseen_traffic_is_more_balanced_in_it() -> None:
    spec, cluster = tiny_spec(), tiny_cluster()
    trace = tiny_trace(spec, 1024)
    named = dataclasses.replace(trace, domain=np.zeros(trace.rows, np.int32), domains=("seen", "unseen"))
    balance: dict[float | None, float] = {}
    for share in (None, 0.0):
        plan = solve(
            named, cluster, slots_per_rank=3, policy="batch-lp", tokens_per_rank=64, jobs=1, effort=2e7,
            objective=Objective("load", unseen=share),
        )  # fmt: skip
        assert any(note.startswith("planned for unseen traffic too: 50%") for note in plan.notes) == (share is None)
        rng, unit = np.random.default_rng(1), np.ones(cluster.ranks)
        slowest = [
            least(held, rng.permutation(loads) / loads.sum(), unit)
            for held, loads in zip(plan.placement.has, trace.loads, strict=True)
            for _ in range(20)
        ]
        balance[share] = np.mean(1 / np.array(slowest)) / cluster.ranks
    assert balance[None] > balance[0.0] + 0.01
