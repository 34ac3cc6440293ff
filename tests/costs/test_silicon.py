"""NVIDIA's measured tables as a compute model; the wheel is an extra."""

from __future__ import annotations

import importlib.util
from importlib import resources

import numpy as np
import pytest

from moesim.base.errors import InputError
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.costs.silicon import masked
from moesim.spec import ModelSpec

SPEC = ModelSpec.preset("deepseek-v3")
has_tables = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None, reason="needs the extra silicon (aiconfigurator-core)"
)


@has_tables
@pytest.mark.parametrize("preset", ["h100-1x8", "gb200-nvl72"])
def test_measured_points_come_back_and_skew_is_between_them(preset: str):
    cluster = Cluster.preset(preset).restrict(range(2))
    costs = Costs.default(SPEC, cluster, compute="silicon", decode=True)
    model = costs.compute
    for active, tokens, log_seconds in zip(model.active, model.tokens, model.log_seconds, strict=True):
        for m, seconds in zip(tokens, np.exp(log_seconds), strict=True):
            slots = np.full((2, int(active)), m)
            np.testing.assert_allclose(costs.experts_s(slots), seconds)
    even, skewed = (costs.experts_s(np.array([row] * 2, float))[0] for row in ([32] * 8, [1, 1, 1, 1, 1, 1, 1, 249]))
    assert even < skewed
    few = costs.experts_s(np.array([[256, 0, 0, 0, 0, 0, 0, 0]] * 2, float))[0]
    assert few < even  # fewer weights are read
    assert any("measured by NVIDIA" in note for note in costs.notes)
    assert costs.digest != Costs.default(SPEC, cluster, decode=True).digest


@has_tables
def test_the_roofline_is_near_the_measured_tables():
    cluster = Cluster.preset("h100-1x8").restrict([0])
    table, roofline = (Costs.default(SPEC, cluster, compute=c, decode=True) for c in ("silicon", "roofline"))
    for loads in ([64.0] * 8, [8.0] * 4, [1024.0], [512.0, 512.0]):
        measured = table.experts_s(np.array([loads]))[0]
        assert roofline.experts_s(np.array([loads]))[0] == pytest.approx(measured, rel=0.15)


@has_tables
def test_what_was_not_measured_is_refused():
    cluster = Cluster.preset("h100-1x8").restrict([0])
    costs = Costs.default(SPEC, cluster, compute="silicon", decode=True)
    with pytest.raises(InputError, match=r"5000 tokens for an expert, measured up to 1024"):
        costs.experts_s(np.array([[5000.0]]))
    with pytest.raises(InputError, match="active experts on a rank, measured up to"):
        costs.experts_s(np.ones((1, 300)))
    with pytest.raises(InputError, match="measured shapes are 7168 x 2048"):
        masked(ModelSpec.preset("kimi-k2").at_dimensions(ModelSpec.preset("deepseek-v3")).from_dict(
            {**SPEC.to_dict(), "intermediate": 1024}
        ), cluster)  # fmt: skip
    with pytest.raises(InputError, match="not; use roofline"):
        masked(ModelSpec.preset("olmoe-1b-7b"), cluster)
    with pytest.raises(InputError, match="one device among H100"):
        masked(SPEC, Cluster.preset("mi300x-4x8-rail").restrict([0]))


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(resources, "files", missing)
    with pytest.raises(InputError, match=r"pip install moesim\[silicon\]"):
        masked(SPEC, Cluster.preset("h100-1x8").restrict([0]))
