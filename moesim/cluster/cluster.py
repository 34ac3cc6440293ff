"""The cluster that every other room sees: facts per rank, links, and the paths between ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.base.arrays import Array, Sealed, digest, seal
from moesim.base.errors import InputError
from moesim.cluster.paths import Paths

if TYPE_CHECKING:
    import networkx

    from moesim.cluster.schema import Description


@dataclass(frozen=True, eq=False)
class Cluster(Sealed):
    """GPUs, links and paths. Made by :meth:`read` and :meth:`preset`; changed copies by :meth:`edit`.

    Attributes
    ----------
    node, local, rail
        NVLink domain, index in it and rail of each rank, int32 [ranks].
    device
        GPU model of each rank, for kernel tables.
    memory_bytes, flops_bf16, flops_fp8, hbm_bandwidth, speed
        Per rank: bytes, dense FLOP/s, bytes/s, relative speed (1 nominal); float64 [ranks].
    vertices
        Names of all GPUs of the description (first, in order), NICs and switches; ``link_from`` and ``link_to``
        index them. :attr:`rank_names` names those of the ranks.
    link_name, link_tier
        Name ``"a->b"`` and tier of each directed link.
    link_bandwidth, link_nominal, link_latency_s
        Effective bytes/s (what is used), nominal bytes/s, seconds; float64 [links].
    landing
        Rank of node m where traffic of rank r for that node lands: on the sender's rail, itself for its own node;
        int32 [ranks, nodes].
    sources
        Constant to ``"measured|datasheet|derived|assumed: where it is from"``.
    description
        The checked file that the cluster was built from.
    """

    name: str
    node: Array
    local: Array
    rail: Array
    device: tuple[str, ...]
    memory_bytes: Array
    flops_bf16: Array
    flops_fp8: Array
    hbm_bandwidth: Array
    speed: Array
    vertices: tuple[str, ...]
    link_name: tuple[str, ...]
    link_tier: tuple[str, ...]
    link_from: Array
    link_to: Array
    link_bandwidth: Array
    link_nominal: Array
    link_latency_s: Array
    landing: Array
    sources: Mapping[str, str]
    paths: Paths
    description: Description

    def __post_init__(self) -> None:
        ranks = {"ranks": len(self.device), "links": len(self.link_name)}
        for field in ("node", "local", "rail"):
            seal(self, field, getattr(self, field), np.int32, ("ranks",), ranks)
        for field in ("memory_bytes", "flops_bf16", "flops_fp8", "hbm_bandwidth", "speed"):
            seal(self, field, getattr(self, field), np.float64, ("ranks",), ranks)
            if not (getattr(self, field) > 0).all():
                raise InputError(f"Cluster.{field}: expected more than zero for every rank")
        for field in ("link_from", "link_to"):
            seal(self, field, getattr(self, field), np.int32, ("links",), ranks)
        for field in ("link_bandwidth", "link_nominal", "link_latency_s"):
            seal(self, field, getattr(self, field), np.float64, ("links",), ranks)
        if (self.link_bandwidth <= 0).any():
            raise InputError("Cluster.link_bandwidth: expected more than zero for every link")
        if not np.array_equal(np.unique(self.node), np.arange(self.nodes)):
            raise InputError("Cluster.node: expected nodes numbered 0, 1, 2, ... with at least one rank each")
        seal(self, "landing", self.landing, np.int32, ("ranks", "nodes"), {**ranks, "nodes": self.nodes})
        if self.paths.ranks != self.ranks or self.paths.links != len(self.link_name):
            raise InputError("Cluster.paths: compiled for other ranks or links")

    @property
    def ranks(self) -> int:
        """Number of GPUs."""
        return len(self.device)

    @property
    def nodes(self) -> int:
        """Number of NVLink domains."""
        return int(self.node.max()) + 1

    @property
    def links(self) -> int:
        """Number of directed links."""
        return len(self.link_name)

    @property
    def rank_names(self) -> tuple[str, ...]:
        """Name of each rank's GPU, ``node0.gpu3``."""
        return tuple(self.vertices[member] for member in self.paths.members.tolist())

    @property
    def node_names(self) -> tuple[str, ...]:
        """Name of each node, ``node0``; the nodes of a part keep the names that they have in the whole."""
        first = (self.rank_of_node(node)[0] for node in range(self.nodes))
        return tuple(self.rank_names[rank].rpartition(".")[0] for rank in first)

    @cached_property
    def same_node(self) -> Array:
        """Whether two ranks share a node, bool [ranks, ranks]."""
        same: Array = self.node[:, None] == self.node[None, :]
        same.flags.writeable = False
        return same

    @cached_property
    def digest(self) -> str:
        """16 hex digits over everything that changes a result."""
        return digest(
            self.name, self.node, self.local, self.rail, self.device, self.memory_bytes, self.flops_bf16,
            self.flops_fp8, self.hbm_bandwidth, self.speed, self.vertices, self.link_name, self.link_tier,
            self.link_from, self.link_to, self.link_bandwidth, self.link_nominal, self.link_latency_s, self.landing,
            self.paths.members, self.paths.relay, *self._tuned(),
        )  # fmt: skip

    def _tuned(self) -> tuple[str, ...]:
        """Return what the description says of kernels and libraries, nothing where it is silent."""
        held = self.description.constants
        return () if held is None else (held.model_dump_json(exclude={"source"}, exclude_none=True),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cluster) and self.digest == other.digest and self.sources == other.sources

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Cluster({self.name!r}, {self.ranks} ranks, {self.nodes} nodes, {self.links} links)"

    def ranks_of(self, name: str) -> list[int]:
        """Return the rank of a GPU, or those of all GPUs of a node, by its name; empty where nothing here has it."""
        return [rank for rank, gpu in enumerate(self.rank_names) if name in (gpu, gpu.rpartition(".")[0])]

    def rank_of_node(self, node: int) -> Array:
        """Return the ranks of a node, ascending.

        Raises
        ------
        InputError
            If there is no such node.
        """
        if not 0 <= node < self.nodes:
            raise InputError(f"cluster {self.name}: no node {node}; nodes are 0 to {self.nodes - 1}")
        return np.flatnonzero(self.node == node)

    @classmethod
    def read(cls, source: str | Path, format: str | None = None, **options: Any) -> Cluster:
        """Read a topology file of any known format, or the preset of that name.

        Parameters
        ----------
        source
            A file, a preset, or a folder with a fabric dump and the topology files of its nodes.
        format
            One of ``moesim.cluster.formats.TOPOLOGY_FORMATS``; found from the content where it is None.
        options
            Options of that format: ``like="h200-4x8-rail"`` is the preset whose constants hold where a foreign file
            is silent.

        Raises
        ------
        FormatError
            If the file does not hold what it should; names the file, the place, what was expected.
        InputError
            If there is neither such a file nor such a preset, or ranks are not connected.
        """
        from moesim.cluster.formats import read_cluster

        return read_cluster(source, format, **options)

    @classmethod
    def preset(cls, name: str) -> Cluster:
        """Return the preset of that name.

        Raises
        ------
        UnknownName
            If there is none.
        """
        from moesim.cluster.formats import read_cluster
        from moesim.cluster.presets import preset_path

        return read_cluster(preset_path(name))

    def write(self, path: str | Path, format: str = "toml") -> None:
        """Write the cluster.

        Parameters
        ----------
        format
            ``"toml"``: the description, inheritance resolved; reading it gives an equal cluster. ``"sglang"``: rank
            costs for ``--eplb-topology``. ``"astra-sim"``: its network file.

        Raises
        ------
        UnknownName
            If there is no such format.
        InputError
            If the format cannot tell this cluster, or the place cannot be written.
        """
        from moesim.cluster.formats import TOPOLOGY_EXPORTS

        TOPOLOGY_EXPORTS.get(format).write(self, path)

    def edit(
        self,
        sets: Mapping[str, Any] | None = None,
        without: Sequence[str] = (),
        degrade: Mapping[str, float] | None = None,
    ) -> Cluster:
        """Return a what-if copy of the cluster, compiled anew.

        Parameters
        ----------
        sets
            Keys of the file and their new values: ``{"nodes": 16, "tier.rail.bandwidth": "100 GB/s"}``. A new
            bandwidth without a new ``effective`` keeps the ratio of the two.
        without
            Nodes, GPUs, NICs, switches or links (``"a->b"``) to take away.
        degrade
            Part of the bandwidth that remains on the links of a node, GPU, NIC or switch, or on one link.

        Raises
        ------
        InputError
            If a key or a name is unknown, or ranks are no longer connected.
        """
        from moesim.cluster.edit import edited

        return edited(self, sets or {}, without, degrade or {})

    def restrict(self, ranks: Sequence[int] | Array) -> Cluster:
        """Return the sub-cluster of these ranks, numbered in this order.

        All links stay, with their numbers: the fabric keeps its capacity, and the other GPUs are idle.

        Raises
        ------
        InputError
            If a rank does not exist or comes twice.
        """
        from moesim.cluster.build import restricted

        return restricted(self, ranks)

    def describe(self) -> dict[str, Any]:
        """Return a summary with stable keys: sizes, tiers, bisection, worst pair, sources."""
        from moesim.cluster.describe import describe

        return describe(self)

    def graph(self) -> networkx.Graph:
        """Return the vertices and cables as a networkx graph, for drawing."""
        from moesim.cluster.graph import graph

        return graph(self)
