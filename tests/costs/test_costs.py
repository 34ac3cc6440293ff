"""Costs as a whole: defaults, names, sources and notes."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.base.errors import InputError, UnknownName
from moesim.costs import COMPUTES, NETWORKS, TRANSPORTS, Costs
from moesim.costs.constants import GEMM_SHARE_BLACKWELL, HBM_SHARE_BLACKWELL
from moesim.spec import ModelSpec

from .worlds import SPEC, cluster, preset, random_flow

NODES = cluster(2, 2)


def test_the_usual_costs_are_those_of_serving_engines():
    assert Costs.default(SPEC, NODES).transport == "hierarchical"
    assert Costs.default(SPEC, NODES, decode=True).transport == "direct"
    assert Costs.default(SPEC, NODES, "allgather").transport == "allgather"
    assert Costs.default(SPEC, NODES).with_transport("direct").transport == "direct"


def test_names_of_the_built_in_models():
    assert TRANSPORTS.names()[:5] == ["direct", "rank-dedup", "hierarchical", "allgather", "nvlink"]
    assert NETWORKS.names()[:2] == ["bottleneck", "max-min"]
    assert COMPUTES.names()[:2] == ["roofline", "table"]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({"transport": "x"}, "transport"), ({"network": "x"}, "network model"), ({"compute": "x"}, "compute model")],
)
def test_unknown_names_are_errors_at_once(changes: dict[str, str], kind: str):
    with pytest.raises(UnknownName, match=f"unknown {kind} 'x'"):
        Costs.default(SPEC, NODES, **changes)


def test_what_cannot_run_is_an_error_at_once():
    with pytest.raises(InputError, match="several NVLink domains"):
        Costs.default(SPEC, NODES, "nvlink")
    with pytest.raises(InputError, match="'sequential' or 'overlap'"):
        Costs.default(SPEC, NODES, shared_expert="later")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["h100-4x8-rail", "a100-4x8-rail", "gb200-nvl72", "h100-fat-tree-oversub"])
def test_every_source_has_a_tag(name: str):
    costs = Costs.default(ModelSpec.preset("deepseek-v3"), preset(name))
    assert any(key.startswith("transport hierarchical") for key in costs.sources)
    for source in costs.sources.values():
        assert source.split(":")[0] in ("measured", "datasheet", "derived", "assumed")


def test_sources_follow_the_constants_that_a_file_sets():
    ours = preset("h100-4x8-rail").edit(
        {"constants.attention_share": 0.41, "constants.gemm_share": 0.42, "constants.hbm_share": 0.43}
        | {"constants.collective_floor": "44 us"}
    )
    found = Costs.default(SPEC, ours, "rank-dedup").sources
    assert "0.41" in found["attention: share of peak in prefill"]
    assert "0.42" in found["attention: share of peak in projections"]
    assert "0.42" in found["outside: output head"]
    assert "0.43" in found["attention: HBM share"]
    assert "4.4e-05" in found["transport rank-dedup: floor"]
    blackwell = Costs.default(SPEC, preset("gb200-nvl72"))
    assert blackwell.sources["attention: share of peak in projections"] == str(GEMM_SHARE_BLACKWELL)
    assert blackwell.sources["attention: HBM share"] == str(HBM_SHARE_BLACKWELL)


def test_notes_name_the_device_without_a_table():
    assert "expert compute by roofline: no measured table for H100-SXM" in Costs.default(SPEC, NODES).notes[0]


def test_digests_follow_what_changes_results():
    one = Costs.default(SPEC, NODES)
    assert one.digest == Costs.default(SPEC, NODES).digest
    others = [
        Costs.default(SPEC, cluster(2, 4)),
        Costs.default(SPEC, NODES, "direct"),
        Costs.default(SPEC, NODES, network="max-min"),
        Costs.default(SPEC, NODES, shared_expert="overlap"),
        Costs.default(ModelSpec.preset("olmoe-1b-7b"), NODES),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 6


def test_dispatch_and_combine_are_priced_apart():
    flow = random_flow(NODES, SPEC, tokens=256)
    costs = Costs.default(SPEC, NODES)
    there, back = costs.dispatch(flow), costs.combine(flow)
    # bf16 results beside block-scaled fp8 tokens, and a higher floor
    assert back.makespan_s[0] > there.makespan_s[0]
    transfer = costs.transfer(flow, "dispatch")
    np.testing.assert_allclose(there.link_bytes.sum(), bytes_links(transfer, NODES))


def bytes_links(transfer, where) -> float:
    return float(sum(where.paths.link_bytes(leg).sum() for leg in transfer.legs))
