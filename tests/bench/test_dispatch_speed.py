"""Speed of building Flows: picks per second of processor time, and against the numpy reference in the same run.

Run with ``pytest -m bench tests/bench/test_dispatch_speed.py -s``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from moesim.placement import Placement, dispatch, dispatch_reference, nearest_table

EXPERTS, PICKS, RANKS, NODE_SIZE, SLOTS = 256, 8, 64, 8, 5
NODE = (np.arange(RANKS) // NODE_SIZE).astype(np.int32)
LANDING = (np.arange(RANKS // NODE_SIZE) * NODE_SIZE + np.arange(RANKS)[:, None] % NODE_SIZE).astype(np.int32)


def batch(tokens_per_rank: int, layers: int) -> tuple[np.ndarray, np.ndarray, Placement]:
    """Skewed routes (lognormal, sigma 1), homes dealt round-robin, one copy of each expert and 64 more."""
    rng = np.random.default_rng(0)
    weight = np.log(rng.lognormal(0, 1, EXPERTS))
    drawn = np.argpartition(rng.gumbel(size=(8192, EXPERTS)) + weight, -PICKS, axis=1)[:, -PICKS:].astype(np.int16)
    tokens = RANKS * tokens_per_rank
    routes = drawn[rng.integers(0, len(drawn), (tokens, layers))]
    experts = np.empty((layers, SLOTS, RANKS), dtype=np.int32)
    for layer in range(layers):
        order = rng.permutation(EXPERTS)
        experts[layer, :4] = order.reshape(4, RANKS)
        experts[layer, 4] = np.roll(order[:RANKS], 1)
    placement = Placement(experts.transpose(0, 2, 1), EXPERTS)
    return routes, np.tile(np.arange(RANKS, dtype=np.int32), tokens_per_rank), placement


def best(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.bench
@pytest.mark.parametrize("policy", ["nearest", "hash", "random", "uniform"])
@pytest.mark.parametrize(("tokens_per_rank", "layers"), [(128, 58), (1024, 16), (4096, 8)])
def test_picks_per_second(policy: str, tokens_per_rank: int, layers: int) -> None:
    routes, home, placement = batch(tokens_per_rank, layers)
    table = nearest_table(placement, NODE) if policy == "nearest" else None
    arguments = (routes, home, placement, NODE, LANDING)
    dispatch(*arguments, policy=policy, table=table)
    fast = routes.size / best(lambda: dispatch(*arguments, policy=policy, table=table), 5)
    cut = (routes[:4096, :1], home[:4096], Placement(placement.experts[:1], EXPERTS), NODE, LANDING)
    slow = cut[0].size / best(lambda: dispatch_reference(*cut, policy=policy), 1)
    sys.stdout.write(
        f"\n{policy:8} {RANKS} ranks x {tokens_per_rank} tokens x {layers} layers: "
        f"{fast / 1e6:.0f} M picks/s, {fast / slow:.0f} x numpy\n"
    )
    # far below what is measured, so that a loaded machine passes and a lost compilation does not
    assert fast > 5 * slow
