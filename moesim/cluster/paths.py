"""The path of every rank pair, in tables whose size follows the wiring, not the square of the ranks.

A path is the **chain** of access links from the source up to its attachment point (NVSwitch, leaf, spine:
the end of what has only one way out), the **core** path between two attachment points with its equal-cost
shares, and the chain of the target down again. Chains that meet below the attachment point are cut where they
meet. Two planes exist: 0 for pairs inside a node, 1 for all others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import InputError


@dataclass(frozen=True, eq=False)
class Paths(Sealed):
    """Compiled paths; made by :func:`moesim.cluster.compile.compile_paths`.

    Attributes
    ----------
    members
        Compiled rank of each rank of this cluster, int32 [ranks]; a sub-cluster shares the tables of its parent.
    node
        Node of each compiled rank, int32 [compiled].
    relay
        Rank of node n through which traffic to a rank leaves that node, int32 [compiled, nodes]; empty: no relay.
    attach
        Attachment point per plane, int32 [2, compiled]; -1 where a rank has none.
    chain_start, chain_link, chain_vertex
        Links from a rank to its attachment point and the vertices they lead to; row ``plane * compiled + rank``.
        The other direction of a link is ``link ^ 1``.
    row, column
        Core pair of attachment points a, b is ``row[a] + column[b]``.
    core_start, core_link, core_share
        Links of each core pair and the part of the bytes that takes them.
    link_latency
        Seconds, float64 [links].
    """

    members: Array
    node: Array
    relay: Array
    attach: Array
    chain_start: Array
    chain_link: Array
    chain_vertex: Array
    row: Array
    column: Array
    core_start: Array
    core_link: Array
    core_share: Array
    link_latency: Array

    def __post_init__(self) -> None:
        compiled = {"compiled": len(self.node)}
        seal(self, "members", self.members, np.int32, ("ranks",))
        seal(self, "node", self.node, np.int32, ("compiled",))
        seal(self, "relay", self.relay, np.int32, ("relayed", "nodes"))
        seal(self, "attach", self.attach, np.int32, ("planes", "compiled"), {"planes": 2, **compiled})
        seal(self, "chain_start", self.chain_start, np.int64, ("rows",), {"rows": 2 * len(self.node) + 1})
        chain = {"steps": int(self.chain_start[-1])}
        seal(self, "chain_link", self.chain_link, np.int32, ("steps",), chain)
        seal(self, "chain_vertex", self.chain_vertex, np.int32, ("steps",), chain)
        seal(self, "row", self.row, np.int64, ("points",))
        seal(self, "column", self.column, np.int64, ("points",), {"points": len(self.row)})
        seal(self, "core_start", self.core_start, np.int64, ("rows",))
        core = {"steps": int(self.core_start[-1])}
        seal(self, "core_link", self.core_link, np.int32, ("steps",), core)
        seal(self, "core_share", self.core_share, np.float64, ("steps",), core)
        seal(self, "link_latency", self.link_latency, np.float64, ("links",))

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return len(self.members)

    @property
    def links(self) -> int:
        """Number of directed links."""
        return len(self.link_latency)

    @property
    def nbytes(self) -> int:
        """Bytes that the tables take."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def tables(self) -> tuple[Array, ...]:
        """Return the tables in the order in which the kernels take them."""
        return (
            self.members, self.node, self.relay, self.attach, self.chain_start, self.chain_link, self.chain_vertex,
            self.row, self.column, self.core_start, self.core_link, self.core_share,
        )  # fmt: skip

    def link_bytes(self, traffic: ArrayLike) -> Array:
        """Return the bytes that cross every link.

        Parameters
        ----------
        traffic
            Bytes from rank to rank, [..., ranks, ranks]; a diagonal carries nothing.

        Returns
        -------
        float64 [..., links]

        Raises
        ------
        InputError
            If the last two axes are not the ranks of this cluster.
        """
        from moesim.cluster import kernels

        array = np.ascontiguousarray(traffic, dtype=np.float64)
        if array.shape[-2:] != (self.ranks, self.ranks):
            raise InputError(
                f"traffic: expected axes [..., {self.ranks}, {self.ranks}] (rank to rank), got shape {array.shape}"
            )
        square = array.reshape(-1, self.ranks, self.ranks)
        square.flags.writeable = False  # one kernel for what can be written and what cannot
        out = kernels.link_bytes(square, self.links, *self.tables())
        return out.reshape(*array.shape[:-2], self.links)

    def flows(self, source: ArrayLike, target: ArrayLike) -> tuple[Array, Array, Array]:
        """Return the flat incidence of rank pairs: (flow int64, link int32, share float64), ordered by flow.

        A pair of a rank with itself has no links. Inside a flow the links stand in path order, level by level.

        Raises
        ------
        InputError
            If a rank does not exist, or the two lists differ in length.
        """
        from moesim.cluster import kernels

        return kernels.flows(*self._pairs(source, target), self.links, *self.tables())

    def latency_s(self, source: ArrayLike, target: ArrayLike) -> Array:
        """Return the latency of each pair's path in seconds, float64 [pairs]; 0 for a rank with itself."""
        from moesim.cluster import kernels

        return kernels.fold(*self._pairs(source, target), self.link_latency, 0, *self.tables())

    def slowest(self, link_time_s: ArrayLike, source: ArrayLike, target: ArrayLike) -> Array:
        """Return the largest link time on each pair's path, float64 [pairs], from times per link [links]."""
        from moesim.cluster import kernels

        time_s = self._per_link(link_time_s)
        if time_s.ndim != 1:
            raise InputError(f"link_time_s: expected axes [links], got shape {time_s.shape}")
        return kernels.fold(*self._pairs(source, target), time_s, 1, *self.tables())

    def alone_s(self, link_time_s: ArrayLike, source: ArrayLike, target: ArrayLike) -> Array:
        """Return the largest share x link time on each pair's path, float64 [pairs]: a byte of a pair on its own."""
        from moesim.cluster import kernels

        return kernels.fold(*self._pairs(source, target), self._per_link(link_time_s), 2, *self.tables())

    def slowest_matrix(self, link_time_s: ArrayLike) -> Array:
        """Return the largest link time on the path of all pairs, [..., ranks, ranks] from [..., links]."""
        from moesim.cluster import kernels

        time_s = self._per_link(link_time_s)
        out = kernels.slowest_matrix(time_s.reshape(-1, self.links), *self.tables())
        return out.reshape(*time_s.shape[:-1], self.ranks, self.ranks)

    def latency_matrix(self) -> Array:
        """Return the path latency of all pairs in seconds, float64 [ranks, ranks]."""
        source, target = np.divmod(np.arange(self.ranks * self.ranks), self.ranks)
        return self.latency_s(source, target).reshape(self.ranks, self.ranks)

    def _per_link(self, value: ArrayLike) -> Array:
        array = np.ascontiguousarray(value, dtype=np.float64).view()
        array.flags.writeable = False  # one kernel for what can be written and what cannot
        if array.ndim == 0 or array.shape[-1] != self.links:
            raise InputError(f"link_time_s: expected axes [..., {self.links}] (links), got shape {array.shape}")
        return array

    def _pairs(self, source: ArrayLike, target: ArrayLike) -> tuple[Array, Array]:
        pair = np.atleast_1d(np.asarray(source, np.int64)), np.atleast_1d(np.asarray(target, np.int64))
        if pair[0].shape != pair[1].shape or pair[0].ndim != 1:
            raise InputError(f"rank pairs: expected two lists of one length, got {pair[0].shape} and {pair[1].shape}")
        for side in pair:
            if side.size and (side.min() < 0 or side.max() >= self.ranks):
                raise InputError(
                    f"rank pairs: expected ranks 0 to {self.ranks - 1}, got {int(side.min())} to {int(side.max())}"
                )
        return pair
