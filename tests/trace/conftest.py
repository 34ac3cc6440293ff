"""A small trace with everything recorded."""

from __future__ import annotations

import numpy as np
import pytest
from small_traces import small_spec

from moesim.trace import Trace


@pytest.fixture
def trace() -> Trace:
    """40 tokens of 4 requests in 2 domains, with weights, recorded in 5 steps on 2 ranks."""
    rng = np.random.default_rng(0)
    spec = small_spec()
    routes = np.argsort(rng.random((40, 2, 8)), axis=-1)[..., :2]
    row = np.arange(40)
    return Trace(
        spec,
        routes,
        rng.random(routes.shape),
        step=row // 8,
        request=row % 4,
        position=row // 4,
        source=row % 2,
        phase=(row >= 16).astype(int),
        domain=row % 2,
        domains=("law", "code"),
        origin={"captured_by": "a test", "synthetic": True},
    )
