"""A tree of switches with hosts at its leaves, as schedulers know clusters: no GPUs, NICs or speeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError
from moesim.base.units import count
from moesim.cluster.formats.like import Like
from moesim.cluster.formats.text import MOST_HOSTS, clean, distinct, dotless, hosts
from moesim.cluster.schema import MAX_RANKS

_DEEPEST = 16


@dataclass
class Tree:
    """Switches, the hosts below them, and NVLink domains.

    Attributes
    ----------
    parent
        Switch above a switch or a host.
    hosts
        Hosts in the order of the file, with the place where each is named.
    switches
        Switches with the place where each is described.
    domain
        NVLink domain of a host; hosts without one are nodes of their own.
    """

    path: Path
    parent: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    switches: dict[str, str] = field(default_factory=dict)
    domain: dict[str, str] = field(default_factory=dict)
    named: int = 0  # names read so far: ranges make many of a few characters

    def names(self, text: str, place: str) -> list[str]:
        """Return the names of a host list.

        Raises
        ------
        FormatError
            If it is none, or the file names more things than any cluster has.
        """
        found = hosts(text, self.path, place)
        self.named += len(found)
        if self.named > 4 * MOST_HOSTS:
            raise FormatError(
                self.path, place, f"names more than {4 * MOST_HOSTS:,} things; describe a smaller cluster"
            )
        return found

    def hang(self, below: str, above: str, place: str) -> None:
        """Put a switch or a host below a switch.

        Raises
        ------
        FormatError
            If it hangs on another one already.
        """
        if self.parent.setdefault(below, above) != above:
            raise FormatError(
                self.path,
                place,
                f"{below[:60]} is below {self.parent[below][:60]} and {above[:60]}; a tree has one way up",
            )


def tree_tables(tree: Tree, like_name: str | None, gpus_per_host: int | None = None) -> dict[str, Any]:
    """Return the tables of a tree: every host has the GPUs, NICs and NVLink of the preset ``like``.

    Every switch passes on all that enters it from below: the file does not tell speeds.

    Raises
    ------
    FormatError
        If there are no hosts, or a switch is above itself.
    """
    from moesim.base.units import parse

    if not tree.hosts:
        raise FormatError(tree.path, "", "names no nodes; there is nothing to simulate")
    like = Like(like_name or ("gb200-nvl72" if tree.domain else "h100-4x8-rail"))
    per_host = (4 if tree.domain else like.gpus) if gpus_per_host is None else gpus_per_host
    if not 1 <= per_host * len(tree.hosts) <= MAX_RANKS:
        raise FormatError(
            tree.path,
            "",
            f"{count(len(tree.hosts), 'host')} of {count(per_host, 'GPU')}: expected 1 to {MAX_RANKS:,} GPUs in all",
        )
    notes = [f"{tree.path.name} does not tell GPUs, NICs, speeds and latencies: {count(per_host, 'GPU')} per host, the "
             f"rest as {like.name}; switches pass on all that enters them"]  # fmt: skip
    _check_depth(tree)
    domains: dict[str, list[str]] = {}
    for host in tree.hosts:
        domains.setdefault(tree.domain.get(host, host), []).append(host)
    names = dict(zip(domains, distinct(dotless(name) for name in domains), strict=True))
    holding = _above_hosts(tree)
    used = [switch for switch in tree.switches if switch in holding]
    height = _heights(tree)
    switch_names = distinct([*names.values(), *(dotless(name) for name in used)])[len(names) :]
    vertex = dict(zip(used, switch_names, strict=True))
    roots = [switch for switch in used if switch not in tree.parent]
    orphans = [host for host in tree.hosts if host not in tree.parent]
    if len(roots) > 1 or orphans or not used:
        top = distinct([*names.values(), *switch_names, "fabric"])[-1]
        vertex["\0top"] = top
        if roots or len(domains) > 1:
            notes.append(f"on no common switch: {count(len(roots) + len(orphans), 'part')}, joined by one, {top}")
    nic = like.link("nic", None, "")
    pcie = like.link("pcie", None, "")
    direct = like.tier("pcie") is None
    switches: list[str] = []
    links: list[dict[str, Any]] = []
    up: dict[str, float] = {}
    rate = parse(nic["bandwidth"], "bandwidth", "tier.rail.bandwidth")
    for domain, members in domains.items():
        for number, host in enumerate(members):
            above = tree.parent.get(host, "\0top")
            for gpu in range(number * per_host, (number + 1) * per_host):
                end = f"{names[domain]}.gpu{gpu}"
                if not direct:
                    port = f"{names[domain]}.nic{gpu}"
                    switches.append(port)
                    links.append({"ends": [end, port], "tier": "pcie", **pcie})
                    end = port
                links.append({"ends": [end, vertex[above]], "tier": "nic", **nic})
            _add(tree, up, above, per_host * rate)
    cables = [
        {"ends": [vertex[switch], vertex[tree.parent.get(switch, "\0top")]], "tier": f"level{height[switch]}",
         **like.link("spine" if like.tier("spine") else "nic", up[switch], "assumed: as much as enters from below")}
        for switch in used
        if switch in tree.parent or "\0top" in vertex
    ]  # fmt: skip
    links += sorted(cables, key=lambda link: str(link["tier"]))
    node = {key: value for key, value in (like.tier("node") or {}).items() if key != "nics_on"}
    return {
        "schema": 1,
        "name": dotless(tree.path.stem),
        "about": f"imported from {clean(tree.path.name)}",
        "notes": notes,
        "switches": [*switches, *vertex.values()],
        "gpu": like.gpu,
        "tier": {"node": node},
        "node": [{"name": names[domain], "gpus": per_host * len(members)} for domain, members in domains.items()],
        "link": links,
    }


def _check_depth(tree: Tree) -> None:
    for switch, place in tree.switches.items():
        seen, at = 0, switch
        while at in tree.parent:
            at, seen = tree.parent[at], seen + 1
            if seen > _DEEPEST:
                raise FormatError(
                    tree.path, place, f"{switch[:60]} is above itself, or more than {_DEEPEST} levels deep"
                )
    for below, above in tree.parent.items():
        if above not in tree.switches:
            raise FormatError(tree.path, "", f"{below[:60]} hangs on {above[:60]}, which is nowhere described")
        if below not in tree.switches and below not in tree.hosts:
            raise FormatError(
                tree.path, tree.switches[above], f"{below[:60]} is named below {above[:60]} and nowhere described"
            )


def _above_hosts(tree: Tree) -> set[str]:
    found: set[str] = set()
    for host in tree.hosts:
        at = host
        while at in tree.parent and tree.parent[at] not in found:
            at = tree.parent[at]
            found.add(at)
    return found


def _add(tree: Tree, up: dict[str, float], at: str, rate: float) -> None:
    while True:
        up[at] = up.get(at, 0.0) + rate
        if at not in tree.parent:
            return
        at = tree.parent[at]


def _heights(tree: Tree) -> dict[str, int]:
    """Return 1 for switches with hosts, more above them: the lowest tier comes first."""
    out: dict[str, int] = {}
    for host in tree.hosts:
        at, level = host, 0
        while at in tree.parent:
            at, level = tree.parent[at], level + 1
            out[at] = max(out.get(at, 0), level)
    return out
