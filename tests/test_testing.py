"""Every registered plug-in faces its judge; and each judge catches a cheat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from trace_samples import SAMPLES

from moesim.cluster.formats import TOPOLOGY_FORMATS
from moesim.costs import NETWORKS, TRANSPORTS
from moesim.placement import PLACEMENT_FORMATS, POLICIES
from moesim.placement.policies import NEAREST, TablePolicy
from moesim.solve import SOLVERS
from moesim.spec import ModelSpec
from moesim.testing import (
    Verdict,
    check_format,
    check_network,
    check_policy,
    check_solver,
    check_topology,
    check_transport,
)
from moesim.trace.formats import TRACE_FORMATS
from moesim.trace.synthetic import router

# moesim repeats itself where its work ends before the deadline; the search of cp-sat only ends with a proof
HOW = {"moesim": {"options": {"effort": 2e6}}, "cp-sat": {"deadline_s": 1.5, "repeatable": False}}


@pytest.mark.parametrize("name", SOLVERS.names())
def test_solvers(name: str):
    check_solver(SOLVERS.get(name), **HOW.get(name, {}))


@pytest.mark.parametrize("name", NETWORKS.names())
def test_networks(name: str):
    check_network(NETWORKS.get(name))


@pytest.mark.parametrize("name", TRANSPORTS.names())
def test_transports(name: str):
    check_transport(TRANSPORTS.get(name))


@pytest.mark.parametrize("name", POLICIES.names())
def test_policies(name: str):
    check_policy(name)


@pytest.mark.parametrize("name", PLACEMENT_FORMATS.names())
def test_placement_formats(name: str):
    check_format(PLACEMENT_FORMATS.get(name), suffix={"eplb": ".npz"}.get(name, ""))


@pytest.mark.parametrize("name", TRACE_FORMATS.names())
def test_trace_formats(name: str, tmp_path: Path):
    if name not in SAMPLES:
        pytest.fail(f"trace format {name!r} is registered without a sample in trace_samples.py: add one")
    trace = router(ModelSpec.preset("gpt-oss-20b"), 40, seed=0, request_tokens=10)
    options = {} if name in ("parquet", "parts") else {"model": trace.spec}
    folder = tmp_path / "sample"
    folder.mkdir()
    check_format(TRACE_FORMATS.get(name), sample=SAMPLES[name](trace, folder), **options)


TOPOLOGIES = {
    "toml": ("tree-2x2.toml", {}),
    "nccl-xml": ("nccl-h100-4gpu.xml", {}),
    "nvidia-smi": ("nvidia-smi-h100.txt", {}),
    "ibnetdiscover": ("ibnetdiscover-2x4.out", {}),
    "iblinkinfo": ("iblinkinfo-2x4.out", {}),
    "slurm": ("slurm-tree.conf", {}),
    "topograph": ("topograph-tree.yaml", {}),
    "simai": ("simai-8.topo", {}),
    "astra-sim": ("astra-switch.yml", {}),
}
FOLDERS = {"fusion"}
"""Read from folders of files that the other formats read: judged with them in tests/cluster/test_formats.py."""


@pytest.mark.parametrize("name", sorted(set(TOPOLOGY_FORMATS.names()) - FOLDERS))
def test_topology_formats(name: str, root: Path):
    sample, options = TOPOLOGIES[name]
    check_topology(TOPOLOGY_FORMATS.get(name), root / "tests" / "cluster" / "samples" / sample, **options)


def test_the_judges_refuse_what_breaks_a_law():
    contiguous, bottleneck = SOLVERS.get("contiguous"), NETWORKS.get("bottleneck")
    parquet = TRACE_FORMATS.get("parquet")

    def loses_an_expert(problem):
        return np.where(contiguous(problem) == 0, -1, contiguous(problem))

    def follows_the_clock(problem):
        return contiguous(problem)[:, np.random.default_rng().permutation(problem.ranks)]

    def half_the_time(transfer, cluster):
        timing = bottleneck(transfer, cluster)
        return replace_time(timing, timing.arrive_s / 2)

    def forgets_a_node(flow, cluster, spec, direction):
        transfer = TRANSPORTS.get("direct")(flow, cluster, spec, direction)
        return replace(transfer, legs=tuple(leg * (cluster.node == 0) for leg in transfer.legs))

    def all_to_slot_zero(placement, node, layers):
        return np.zeros_like(NEAREST.table(placement, node, layers))

    with pytest.raises(Verdict, match="on no rank"):
        check_solver(loses_an_expert)
    with pytest.raises(Verdict, match="same problem and seed"):
        check_solver(follows_the_clock)
    with pytest.raises(Verdict, match="faster than"):
        check_network(half_the_time)
    with pytest.raises(Verdict, match="fewer bytes enter a node"):
        check_transport(forgets_a_node)
    with pytest.raises(Verdict, match="does not hold it"):
        check_policy(TablePolicy("nobody", all_to_slot_zero))
    with pytest.raises(Verdict, match="sniff does not know"):
        check_format(SimpleNamespace(sniff=lambda path: False, read=parquet.read), sample=Path(__file__))


def replace_time(timing, arrive_s):
    return SimpleNamespace(**{**vars(timing), "arrive_s": arrive_s, "makespan_s": arrive_s.max(axis=1)})
