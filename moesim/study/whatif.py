"""What if: a changed cluster, group, batch, traffic or number of copies, priced at once by the closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array, digest
from moesim.base.errors import InputError
from moesim.base.units import count, parse
from moesim.cluster import Cluster, Deployment
from moesim.costs import Costs
from moesim.placement import Placement
from moesim.simulate import Report, simulate
from moesim.simulate.inputs import UNKNOWN_FIT
from moesim.solve.loads import count_loads
from moesim.solve.memory import check_memory
from moesim.solve.packing import balance
from moesim.spec import ModelSpec
from moesim.study.windows import costs_of, fewest_slots, steps_of
from moesim.trace import Batches, Trace
from moesim.trace.checks import check_seed

IN_NODE: Final = "node"
"""Tier inside a node (NVLink); all others carry traffic between nodes."""


@dataclass(frozen=True)
class Scenario:
    """What runs, and what is different about it.

    Parameters
    ----------
    slots_per_rank
        Experts that a rank holds in a layer, C.
    ranks
        Size of the expert-parallel group, the first so many GPUs that are left; None: all of them.
    nodes
        Nodes of the cluster; None as described.
    between_nodes, inside_nodes
        Factors on the bandwidth of links between nodes (NIC, PCIe, leaf, spine) and inside them (NVLink).
    without
        GPUs, NICs, nodes, switches or links that failed, by the names of the topology.
    tokens_per_rank
        Tokens of a rank in a step; None as recorded or usual.
    domains
        Weight of each domain in the traffic; empty: as recorded. A domain that is not named has weight 1.
    """

    slots_per_rank: int
    ranks: int | None = None
    nodes: int | None = None
    between_nodes: float = 1.0
    inside_nodes: float = 1.0
    without: tuple[str, ...] = ()
    tokens_per_rank: int | None = None
    domains: Mapping[str, float] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """16 hex digits that name the scenario."""
        return digest(*(getattr(self, entry.name) for entry in dataclasses.fields(self)))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a scenario costs.

    Parameters
    ----------
    report
        Of its steps, by the closed form unless another engine was asked for.
    cluster, batches, costs, placement
        What was simulated.
    kept
        Whether the given plan fits and was used; else the placement is balanced by load.
    lost
        Experts of each layer whose every copy was on GPUs that failed, int64 [layers]; None without a plan or failures.
    notes
        What a reader must know.
    """

    report: Report
    cluster: Cluster
    batches: Batches
    costs: Costs
    placement: Placement
    kept: bool
    lost: Array | None
    notes: tuple[str, ...]


def price(
    trace: Trace,
    cluster: Cluster,
    scenario: Scenario,
    *,
    placement: Placement | None = None,
    policy: str = "nearest",
    transport: str | None = None,
    network: str = "bottleneck",
    compute: str = "roofline",
    dims: ModelSpec | None = None,
    phase: str | None = None,
    max_steps: int | None = 2,
    engine: str = "closed-form",
    seed: int = 0,
) -> Outcome:
    """Return what a scenario costs.

    Parameters
    ----------
    trace
        The traffic that it is judged on.
    cluster
        The whole cluster, before the changes.
    placement
        Placement that runs. It is used where the scenario leaves ranks and slots as they are and loses none; else
        copies are balanced by load on the spot, in milliseconds, which no search has polished.
    max_steps
        Steps to look at; None: all.
    engine
        ``"closed-form"`` or ``"events"``.

    Raises
    ------
    InputError
        If the scenario is impossible: too few slots, ranks that are not there, unknown parts.
    Infeasible
        If the experts do not fit the memory.
    """
    whole = changed(cluster, scenario)
    group = Deployment(size=None if scenario.ranks is None else min(scenario.ranks, whole.ranks)).restrict(whole)
    notes: list[str] = []
    if scenario.ranks is not None and scenario.ranks > whole.ranks:
        notes.append(f"{count(scenario.ranks, 'rank')} wanted, all GPUs that are left are taken: {whole.ranks}")
    traffic = mixed_domains(trace, scenario.domains, seed=seed)
    batches = steps_of(
        traffic, group, tokens_per_rank=scenario.tokens_per_rank, phase=phase, max_steps=max_steps, seed=seed
    )
    costs = costs_of(batches, group, dims=dims, transport=transport, network=network, compute=compute)
    least = fewest_slots(costs.spec.experts, group.ranks)
    if scenario.slots_per_rank < least:
        raise InputError(
            f"what if: {count(group.ranks, 'rank')} of {count(scenario.slots_per_rank, 'slot')} cannot hold "
            f"{count(costs.spec.experts, 'expert')}; give at least {count(least, 'slot')} a rank"
        )
    check_memory(costs.spec, group, scenario.slots_per_rank)
    fits = placement is not None and not scenario.without and (placement.ranks, placement.slots_per_rank) == (
        group.ranks, scenario.slots_per_rank,
    )  # fmt: skip
    if placement is not None and fits:
        used = placement
    else:
        loads = count_loads(batches)
        used = Placement(balance(loads, group.ranks, scenario.slots_per_rank, group.speed), costs.spec.experts)
        notes.append(
            "placed anew on the spot, balanced by the load of these very steps: no search has polished it, and it has "
            "seen the traffic it is judged on"
        )
    report = simulate(
        batches, group, used.for_model(costs.spec), policy=policy, dims=dims, costs=costs, engine=engine, seed=seed
    )
    lost = None if placement is None or not scenario.without else lost_experts(placement, cluster, scenario.without)
    notes += [note for note in report.notes if note != UNKNOWN_FIT]
    return Outcome(report, group, batches, costs, used, fits, lost, tuple(dict.fromkeys(notes)))


def changed(cluster: Cluster, scenario: Scenario) -> Cluster:
    """Return the cluster of a scenario: other bandwidths and nodes, failed parts taken away.

    Raises
    ------
    InputError
        If a part has no such name, or what is left is not connected.
    """
    sets: dict[str, Any] = {}
    if scenario.nodes is not None and scenario.nodes != cluster.description.nodes:
        if cluster.description.nodes is None:
            raise InputError(
                f"what if: {cluster.name} names its nodes one by one, so their number cannot be set; take some away "
                "instead"
            )
        sets["nodes"] = scenario.nodes
    for name, tier in cluster.description.tier:
        factor = scenario.inside_nodes if name == IN_NODE else scenario.between_nodes
        if tier is None or tier.bandwidth is None or factor == 1:
            continue
        sets[f"tier.{name}.bandwidth"] = f"{parse(tier.bandwidth, 'bandwidth', name) * factor / 1e9:.6g} GB/s"
    return cluster.edit(sets, scenario.without) if sets or scenario.without else cluster


def mixed_domains(trace: Trace, weights: Mapping[str, float], *, seed: int = 0) -> Trace:
    """Return the requests of a trace in another mix of domains, none of them twice.

    Parameters
    ----------
    weights
        Domain to how often its tokens occur, relative to the recording: 0 leaves it out, 2 against a common 1 doubles
        its share. A domain that is not named has weight 1.

    Raises
    ------
    InputError
        If a weight or the seed is negative, a domain is unknown, or nothing is left.
    """
    if not weights or all(weight == 1 for weight in weights.values()):
        return trace
    if unknown := sorted(set(weights) - set(trace.domains)):
        raise InputError(f"domain mix: the trace has no domain {unknown[0]!r}; it has {', '.join(trace.domains)}")
    weight = np.array([float(weights.get(name, 1.0)) for name in trace.domains])
    if (weight < 0).any() or weight.max() == 0:
        raise InputError(f"domain mix: expected weights of zero or more, not all of them zero, got {dict(weights)}")
    keep = weight / weight.max()
    # whole requests: their tokens stay together, and the largest weight keeps all of its own
    requests, first = np.unique(trace.request, return_index=True)
    check_seed(seed)
    draw = np.random.default_rng(seed).random(len(requests))
    kept = draw < keep[trace.domain[first]]
    rows = kept[np.searchsorted(requests, trace.request)]
    if not rows.any():
        raise InputError("domain mix: no request is left; give a longer trace or larger weights")
    return trace.select(rows)


def lost_experts(placement: Placement, cluster: Cluster, without: tuple[str, ...]) -> Array:
    """Return how many experts of each layer have no copy left when parts fail, int64 [layers].

    Only GPUs and nodes hold experts; a link or NIC that fails loses none.

    Parameters
    ----------
    placement
        What runs, on the first ranks of the cluster.
    without
        Names of parts; ``node1`` stands for all its GPUs.
    """
    gone = [rank for part in without for rank in cluster.ranks_of(part) if rank < placement.ranks]
    left = np.ones(placement.ranks, bool)
    left[gone] = False
    return np.asarray((~placement.has[:, :, left].any(axis=2)).sum(axis=1))
