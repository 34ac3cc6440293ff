"""One node as its own tools describe it, and the topology tables that follow."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError
from moesim.base.units import parse
from moesim.cluster.formats.like import Like, gb
from moesim.cluster.formats.text import dotless
from moesim.cluster.overlay import overlay

# how two devices of a node meet, nearest first, as nvidia-smi and NCCL name it: one PCIe switch, several, the host
# bridge of a CPU, the CPU's other bridges, another CPU
PIX, PXB, PHB, NODE, SYS = range(5)
_SOCKETS = 22e9  # bytes/s; what NCCL takes for the link between two CPUs of this generation (src/graph/topo.h)
_MOST_LINKS = 18  # NVLinks of the widest GPU so far
_LARGEST = 64  # GPUs of one host


@dataclass(frozen=True)
class Nic:
    """A NIC of a node.

    Attributes
    ----------
    name
        As the system calls it: ``mlx5_0``.
    distance
        How near each GPU is, smaller is nearer.
    rate
        Nominal bytes/s; None where the file does not say.
    guid
        ``sys_image_guid`` in the byte order of the fabric; None where the file does not say.
    """

    name: str
    distance: tuple[int, ...]
    rate: float | None = None
    guid: int | None = None


@dataclass(frozen=True)
class NodeFacts:
    """What a file tells about one node.

    Attributes
    ----------
    gpus
        Number of GPUs.
    meet
        Class (PIX to SYS) in which two GPUs meet over PCIe, by pair i < j.
    switched
        NVLinks of each GPU to NVSwitches; None: the file says nothing about NVLink.
    direct
        NVLinks (or xGMI links) between two GPUs, by pair i < j.
    nics
        The NICs.
    like
        Preset that the file hints at.
    notes
        What was assumed or left out.
    """

    path: Path
    gpus: int
    meet: dict[tuple[int, int], int]
    switched: int | None
    direct: dict[tuple[int, int], int]
    nics: tuple[Nic, ...]
    like: str
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not 1 <= self.gpus <= _LARGEST:
            raise FormatError(self.path, "", f"expected 1 to {_LARGEST} GPUs on one host, found {self.gpus}")


def nic_groups(facts: NodeFacts) -> list[tuple[list[int], list[Nic]]]:
    """Return which GPUs use which NICs: each GPU its nearest, shared evenly among GPUs that are equally near."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for gpu in range(facts.gpus):
        best = min((nic.distance[gpu] for nic in facts.nics), default=None)
        near = tuple(i for i, nic in enumerate(facts.nics) if nic.distance[gpu] == best)
        groups.setdefault(near, []).append(gpu)
    out: list[tuple[list[int], list[Nic]]] = []
    for near, gpus in groups.items():
        nics = [facts.nics[i] for i in near]
        if not nics:
            continue
        if len(nics) <= len(gpus) and len(gpus) % len(nics) == 0:
            share = len(gpus) // len(nics)
            out += [(gpus[i * share : (i + 1) * share], [nic]) for i, nic in enumerate(nics)]
        elif len(nics) % len(gpus) == 0:
            share = len(nics) // len(gpus)
            out += [([gpu], nics[i * share : (i + 1) * share]) for i, gpu in enumerate(gpus)]
        else:
            out.append((gpus, nics))
    return sorted(out, key=lambda group: group[0])


def even(groups: list[tuple[list[int], list[Nic]]], gpus: int) -> int | None:
    """Return GPUs per NIC where the NICs are spread evenly over consecutive GPUs; else None."""
    if not groups:
        return None
    share = len(groups[0][0])
    in_order = [gpu for own, _ in groups for gpu in own] == list(range(gpus))
    alike = all(len(own) == share and len(nics) == len(groups[0][1]) for own, nics in groups)
    rates = {nic.rate for _, nics in groups for nic in nics}
    return share if in_order and alike and len(rates) == 1 and (share == 1 or len(groups[0][1]) == 1) else None


def inside(facts: NodeFacts, like: Like, name: str) -> tuple[dict[str, Any] | None, list[str], list[dict[str, Any]]]:
    """Return ``[tier.node]``, switches and links of what connects the GPUs of a node.

    The table is None where the file says nothing, and empty where switches and links tell all.
    """
    tool = facts.path.name
    pairs = [(i, j) for i in range(facts.gpus) for j in range(i + 1, facts.gpus)]
    if facts.switched is None or facts.gpus == 1:
        return None, [], []
    if facts.switched:
        text = _links(facts.switched, "per GPU", like, tool)
        return {"bandwidth": gb(facts.switched * like.nvlink()), "source": {"bandwidth": text}}, [], []
    counts = set(facts.direct.values())
    if set(facts.direct) == set(pairs) and len(counts) == 1:
        count = counts.pop()
        text = _links(count, "between two GPUs", like, tool)
        return {"mesh": True, "bandwidth": gb(count * like.nvlink()), "source": {"bandwidth": text}}, [], []
    links = [
        {"ends": [f"{name}.gpu{i}", f"{name}.gpu{j}"], "tier": "node",
         **like.link("node", count * like.nvlink(), _links(count, "between two GPUs", like, tool))}
        for (i, j), count in sorted(facts.direct.items())
    ]  # fmt: skip
    switches, tree = _pcie_tree(facts, like, name)
    return {}, switches, [*links, *tree]


def _links(count: int, where: str, like: Like, tool: str) -> str:
    return f"derived: {count} link{'s' * (count > 1)} {where} ({tool}), {gb(like.nvlink())} each as {like.name}"


def _pcie_tree(facts: NodeFacts, like: Like, name: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the PCIe switches, CPUs and links that GPUs without common NVLinks talk over."""
    above = [f"{name}.gpu{i}" for i in range(facts.gpus)]
    switches: list[str] = []
    links: list[dict[str, Any]] = []
    for level, kind in ((PIX, "pix"), (PXB, "pxb"), (NODE, "cpu")):
        groups = _groups(facts, level)
        below, above = above, list(above)
        for number, group in enumerate(groups):
            parts = list(dict.fromkeys(below[i] for i in group))
            if len(parts) == 1 and kind != "cpu":
                continue
            switch = f"{name}.{kind}{number}"
            switches.append(switch)
            pcie = like.link("pcie", None, "")
            links += [{"ends": [part, switch], "tier": "pcie", **pcie} for part in parts]
            for i in group:
                above[i] = switch
    sockets = list(dict.fromkeys(above))
    source = "assumed: NCCL's figure for the link between two CPUs"
    hop = {"bandwidth": gb(_SOCKETS), "latency": "0.5 us", "source": {"bandwidth": source, "latency": "assumed: a hop"}}
    links += [
        {"ends": [a, b], "tier": "socket", **hop} for i, a in enumerate(sockets) for b in sockets[i + 1 :]
    ]  # fmt: skip
    return switches, links


def _groups(facts: NodeFacts, level: int) -> list[list[int]]:
    label = list(range(facts.gpus))
    for (i, j), met in facts.meet.items():
        if met <= level and label[i] != label[j]:
            old, new = max(label[i], label[j]), min(label[i], label[j])
            label = [new if value == old else value for value in label]
    return [[i for i in range(facts.gpus) if label[i] == number] for number in dict.fromkeys(label)]


def node_tables(facts: NodeFacts, like_name: str | None) -> dict[str, Any]:
    """Return the tables of a cluster of one such node; more of them by ``nodes = N`` where its NICs are even."""
    like = Like(like_name or facts.like)
    tool = facts.path.name
    notes = list(facts.notes)
    if like_name is None:
        notes.append(f"{tool} does not tell memory, speeds and latencies: taken from {like.name}; set `like`")
    tier, switches, links = inside(facts, like, "node0")
    base = {key: value for key, value in like.tables.items() if key not in ("about", "node")}
    changes: dict[str, Any] = {"name": dotless(facts.path.stem), "nodes": 1, "gpus_per_node": facts.gpus, "tier": {}}
    if tier == {}:
        base["tier"] = {}
        changes |= {"switches": switches, "link": links}
        notes.append("GPUs without common NVLinks are laid cable by cable: this node stands alone, without its NICs")
    else:
        scale_out = _scale_out(facts, base)
        if scale_out is None:
            base["tier"] = {"node": base["tier"]["node"]}
            notes.append("NICs are not spread evenly over the GPUs: left out, so this node stands alone")
        else:
            changes["tier"] |= scale_out
            left = len(facts.nics) - sum(len(own) for _, own in nic_groups(facts))
            if left:
                notes.append(f"left out, as nearest to no GPU: {left} of the {len(facts.nics)} NICs")
        if tier is not None:
            changes["tier"]["node"] = tier
            # whether there is a switch is what the file says
            base["tier"]["node"] = {k: v for k, v in base["tier"]["node"].items() if k not in ("mesh", "nics_on")}
        elif facts.gpus > 1:
            notes.append(f"{tool} says nothing about NVLink: the inside of the node is that of {like.name}")
    changes["notes"] = notes
    return overlay(base, changes, tool)


def _scale_out(facts: NodeFacts, base: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the NICs change about ``[tier.rail]`` and ``[tier.pcie]``; None where they are uneven."""
    groups = nic_groups(facts)
    share = even(groups, facts.gpus)
    pcie = base["tier"].get("pcie")
    if share is None or (share > 1 and pcie is None):
        return None
    tool, count, one = facts.path.name, len(groups[0][1]), groups[0][1][0].rate
    nic: dict[str, Any] = {"gpus_per_nic": share}
    out = {"rail" if "rail" in base["tier"] else "leaf": nic}
    if one is not None:
        text = f"measured: {count} NIC{'s' * (count > 1)} of {gb(one)} ({tool})"
        nic |= {"bandwidth": gb(one * count), "source": {"bandwidth": text}}
    if one is not None and count > 1 and pcie is not None:
        wide = gb(count * parse(pcie["bandwidth"], "bandwidth", "tier.pcie.bandwidth"))
        text = f"derived: {count} NICs of a GPU ({tool}), a port each"
        out["pcie"] = {"bandwidth": wide, "source": {"bandwidth": text}}
    return out


def all_switched(direct: dict[tuple[int, int], int], gpus: int) -> int:
    """Return links per GPU where counts per pair can only be those to NVSwitches; 0 if they may be direct.

    nvidia-smi prints the links of a GPU, not of a pair, when they lead to NVSwitches.
    """
    counts = Counter(direct.values())
    if len(direct) != gpus * (gpus - 1) // 2 or len(counts) != 1:
        return 0
    count = next(iter(counts))
    return count if count * (gpus - 1) > _MOST_LINKS else 0
