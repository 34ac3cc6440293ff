"""From a description to ranks and cables: nodes, rails, leaves, spines, then the free links."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import combinations

import numpy as np

from moesim.base.errors import InputError
from moesim.base.units import parse
from moesim.cluster.schema import (
    CONSTANTS,
    Description,
    Gpu,
    GpuChange,
    LeafTier,
    Node,
    NodeTier,
    RailTier,
    Sourced,
    SpineTier,
    Tier,
)
from moesim.cluster.wiring import Wiring

_MOST_UPLINKS = 1_000_000
_LARGEST_MESH = 64  # GPUs of a node that are cabled to each other; 8 exist


@dataclass(frozen=True)
class Rank:
    """One GPU and where it sits."""

    name: str
    node: str
    local: int
    rail: int
    gpu: Gpu


@dataclass(frozen=True)
class Cable:
    """One cable; bandwidths in bytes/s per direction."""

    a: str
    b: str
    tier: str
    nominal: float
    bandwidth: float
    latency_s: float


@dataclass
class Layout:
    """What a shape puts down."""

    ranks: list[Rank] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # NICs and switches
    cables: list[Cable] = field(default_factory=list)

    def lay(self, a: str, b: str, tier: str, rate: tuple[float, float], latency: str) -> None:
        """Add a cable of a nominal and an effective bandwidth."""
        self.cables.append(Cable(a, b, tier, *rate, parse(latency, "time", f"tier.{tier}.latency")))


def wire(description: Description) -> tuple[list[Rank], Wiring]:
    """Return the ranks and cables of a description, after its ``without`` and ``degrade``.

    Raises
    ------
    InputError
        If a name in ``[[link]]``, ``without`` or ``degrade`` is unknown, or nothing is left.
    """
    layout = Layout()
    nics = _nodes(description, layout)
    _fabric(description, layout, nics)
    _free(description, layout)
    for name, part in (description.degrade or {}).items():
        _degrade(layout, name, part)
    for name in description.without or ():
        _remove(layout, name)
    if not layout.ranks:
        raise InputError("topology: `without` leaves no GPU; take fewer away")
    return layout.ranks, _flat(layout, description.through_ranks)


def rate(tier: Tier | SpineTier, override: str | None = None) -> tuple[float, float]:
    """Return (nominal, effective) bytes/s of a tier; an override keeps the ratio of the two."""
    nominal = parse(tier.bandwidth, "bandwidth", "bandwidth")
    effective = parse(tier.effective or tier.bandwidth, "bandwidth", "effective")
    if override is None:
        return nominal, effective
    new = parse(override, "bandwidth", "bandwidth")
    return new, new * effective / nominal


def entries(description: Description) -> Iterator[tuple[str, int, Node]]:
    """Yield (name, GPUs, table) of every node."""
    tables = description.node or [Node(count=description.nodes or 0)]
    names: set[str] = set()
    number = 0
    for table in tables:
        for i in range(table.count):
            name = f"node{number}"
            if table.name is not None:
                name = table.name if table.count == 1 else f"{table.name}{i}"
            if name in names:
                raise InputError(f"node: two nodes are named {name!r}; rename one")
            names.add(name)
            number += 1
            yield name, table.gpus or description.gpus_per_node or 0, table


@dataclass(frozen=True)
class _Nic:
    vertex: str
    node: int
    rail: int
    rate: tuple[float, float]


def _nodes(description: Description, layout: Layout) -> list[_Nic]:
    tier = description.tier
    scale_out = tier.rail or tier.leaf
    nics: list[_Nic] = []
    for number, (node, gpus, table) in enumerate(entries(description)):
        gpu = _changed(description.gpu, table.gpu)
        per_nic = scale_out.gpus_per_nic if scale_out else 1
        rails = tier.rail.rails if tier.rail else None
        rail = [(i // per_nic) % (rails or gpus) for i in range(gpus)]
        layout.ranks += [Rank(f"{node}.gpu{i}", node, i, rail[i], gpu) for i in range(gpus)]
        if tier.node is not None:
            _inside(tier.node, node, gpus, table, layout)
        if scale_out is None:
            continue
        nic_rate = rate(scale_out, table.nic_bandwidth)
        on_switch = tier.node is not None and tier.node.nics_on == "switch"
        for i in range(0, gpus, per_nic):
            vertex = f"{node}.nic{i // per_nic}"
            if tier.pcie is None:
                vertex = f"{node}.gpu{i}"  # no PCIe hop described: the GPU's port is the NIC's port
            else:
                layout.others.append(vertex)
                own = [f"{node}.gpu{j}" for j in range(i, min(i + per_nic, gpus))]
                users = [f"{node}.switch"] if on_switch else own
                for user in users:
                    layout.lay(user, vertex, "pcie", rate(tier.pcie), tier.pcie.latency)
            nics.append(_Nic(vertex, number, rail[i], nic_rate))
    return nics


def _inside(tier: NodeTier, node: str, gpus: int, table: Node, layout: Layout) -> None:
    speed = rate(tier, table.node_bandwidth)
    if tier.mesh:
        if gpus > _LARGEST_MESH:
            raise InputError(
                f"tier.node.mesh: {gpus} GPUs cannot each be cabled to all others; at most {_LARGEST_MESH}"
            )
        for i, j in combinations(range(gpus), 2):
            layout.lay(f"{node}.gpu{i}", f"{node}.gpu{j}", "node", speed, tier.latency)
        return
    layout.others.append(f"{node}.switch")
    for i in range(gpus):
        layout.lay(f"{node}.gpu{i}", f"{node}.switch", "node", speed, tier.latency)


def _changed(gpu: Gpu, change: GpuChange | None) -> Gpu:
    if change is None:
        return gpu
    given = change.model_dump(exclude_none=True, exclude={"source"})
    if _other_model(gpu, change) and change.flops_bf16 is not None:
        # whether the other model has fp8 units is not for the first one to say
        given.setdefault("flops_fp8", None)
    return gpu.model_copy(update=given)


def _other_model(gpu: Gpu, change: GpuChange) -> bool:
    return change.model is not None and change.model != gpu.model


def _fabric(description: Description, layout: Layout, nics: list[_Nic]) -> None:
    tier = description.tier
    scale_out: LeafTier | RailTier | None = tier.rail or tier.leaf
    if scale_out is None:
        return
    name = "rail" if tier.rail else "leaf"
    pod_size = scale_out.nodes_per_leaf or (max((nic.node for nic in nics), default=0) + 1)
    several = any(nic.node >= pod_size for nic in nics)
    capacity: dict[str, tuple[float, float]] = {}
    for nic in nics:
        pod = nic.node // pod_size
        rail = f"rail{nic.rail}.pod{pod}" if several else f"rail{nic.rail}"
        leaf = rail if tier.rail else f"leaf{pod}"
        layout.lay(nic.vertex, leaf, name, nic.rate, scale_out.latency)
        nominal, effective = capacity.get(leaf, (0.0, 0.0))
        capacity[leaf] = nominal + nic.rate[0], effective + nic.rate[1]
    layout.others += capacity
    if tier.spine is None:
        return
    if len(capacity) * tier.spine.switches > _MOST_UPLINKS:
        raise InputError(
            f"tier.spine.switches: {tier.spine.switches:,} spines over {len(capacity):,} leaves are more than "
            f"{_MOST_UPLINKS:,} links; describe fewer and wider spines"
        )
    spines = [f"spine{i}" for i in range(tier.spine.switches)]
    layout.others += spines
    for leaf, below in capacity.items():
        if tier.spine.bandwidth is not None:
            uplink = rate(tier.spine)
        else:
            share = (tier.spine.oversubscription or 1.0) * len(spines)
            uplink = below[0] / share, below[1] / share
        for spine in spines:
            layout.lay(leaf, spine, "spine", uplink, tier.spine.latency)


def _free(description: Description, layout: Layout) -> None:
    known = {rank.name for rank in layout.ranks} | set(layout.others)
    for switch in description.switches or ():
        if switch in known:
            raise InputError(f"switches: {switch!r} exists already; choose another name")
        known.add(switch)
        layout.others.append(switch)
    for i, link in enumerate(description.link or ()):
        a, b = link.ends
        for end in (a, b):
            if end not in known:
                raise InputError(
                    f"link[{i}].ends: unknown {end!r}{_close(end, known)}; "
                    "name a GPU (node0.gpu3), a NIC (node0.nic3), a switch of a tier, or add it to `switches`"
                )
        if a == b:
            raise InputError(f"link[{i}].ends: a link from {a!r} to itself; name two ends")
        layout.lay(a, b, link.tier, rate(link), link.latency)


def _close(name: str, known: set[str]) -> str:
    close = get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def _degrade(layout: Layout, name: str, part: float) -> None:
    touched = _touched(layout, name, "degrade")
    layout.cables = [
        replace(cable, bandwidth=cable.bandwidth * part) if cable in touched else cable for cable in layout.cables
    ]


def _remove(layout: Layout, name: str) -> None:
    touched = _touched(layout, name, "without")
    layout.cables = [cable for cable in layout.cables if cable not in touched]
    layout.ranks = [rank for rank in layout.ranks if name not in (rank.name, rank.node)]
    layout.others = [other for other in layout.others if other != name and _node_of(other) != name]


def _touched(layout: Layout, name: str, key: str) -> set[Cable]:
    """Return the cables of a node, a GPU, a NIC, a switch, or the one between two of them (``a->b``)."""
    vertices = {rank.name for rank in layout.ranks} | set(layout.others)
    nodes = {rank.node for rank in layout.ranks}
    if "->" in name:
        ends = set(name.split("->", 1))
        found = {cable for cable in layout.cables if {cable.a, cable.b} == ends}
        if found:
            return found
    elif name in vertices:
        return {cable for cable in layout.cables if name in (cable.a, cable.b)}
    elif name in nodes:
        return {cable for cable in layout.cables if name in (_node_of(cable.a), _node_of(cable.b))}
    cables = {f"{cable.a}->{cable.b}" for cable in layout.cables}
    raise InputError(
        f"{key}: nothing is named {name!r}{_close(name, vertices | nodes | cables)}; name a node (node0), a GPU "
        "(node0.gpu3), a NIC (node0.nic3), a switch (rail2, spine0) or a link (a->b)"
    )


def _node_of(vertex: str) -> str:
    """Return the node of a GPU, a NIC or a switch inside it; host names hold dots themselves."""
    return vertex.rpartition(".")[0]


def _flat(layout: Layout, through_ranks: bool) -> Wiring:
    vertices = [rank.name for rank in layout.ranks] + layout.others
    index = {name: i for i, name in enumerate(vertices)}
    if len(index) < len(vertices):
        twice = next(name for i, name in enumerate(vertices) if index[name] != i)
        raise InputError(f"topology: two things are named {twice!r}; give the node another name")
    nodes = {name: i for i, name in enumerate(dict.fromkeys(rank.node for rank in layout.ranks))}
    return Wiring(
        vertices=tuple(vertices),
        node=np.array([nodes[rank.node] for rank in layout.ranks], np.int32),
        end=np.array([(index[c.a], index[c.b]) for c in layout.cables], np.int32).reshape(-1, 2),
        tier=tuple(c.tier for c in layout.cables),
        nominal=np.array([c.nominal for c in layout.cables], np.float64),
        bandwidth=np.array([c.bandwidth for c in layout.cables], np.float64),
        latency_s=np.array([c.latency_s for c in layout.cables], np.float64),
        through_ranks=through_ranks,
    )


def _inherited(gpu: Gpu, table: Sourced, key: str) -> bool:
    """Return whether a node with GPUs of another model takes a constant from the first one."""
    if not isinstance(table, GpuChange) or not _other_model(gpu, table):
        return False
    return getattr(_changed(gpu, table), key, None) is not None


def sources(description: Description) -> dict[str, str]:
    """Return where every constant is from, by its key in the file."""
    found: dict[str, str] = {}
    tables: list[tuple[str, Sourced]] = [("gpu", description.gpu)]
    tables += [(f"tier.{key}", table) for key, table in description.tier if table is not None]
    tables += [(f"link[{i}]", link) for i, link in enumerate(description.link or ())]
    for i, entry in enumerate(description.node or ()):
        if entry.gpu is not None:
            tables.append((f"node[{i}].gpu", entry.gpu))
    if description.constants is not None:
        tables.append(("constants", description.constants))
    for place, table in tables:
        for key in CONSTANTS:
            if getattr(table, key, None) is None:
                if _inherited(description.gpu, table, key):
                    found[f"{place}.{key}"] = f"assumed: that of {description.gpu.model}"
                continue
            source = table.source.get(key) if isinstance(table.source, dict) else table.source
            found[f"{place}.{key}"] = source or "assumed: no source given"
    return found
