"""What the cost models exchange: Transfer (bytes on paths) and Timing (seconds), and the registries of models.

Symbols: L MoE layers of one batch (always the leading axis), R ranks, C slots a rank, N nodes (NVLink domains).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import InputError
from moesim.base.registry import Registry
from moesim.spec import ModelSpec

if TYPE_CHECKING:
    from moesim.cluster import Cluster

Direction = Literal["dispatch", "combine"]
"""Dispatch carries tokens to experts; combine carries results home."""

DIRECTIONS: Final[tuple[Direction, ...]] = ("dispatch", "combine")


class FlowLike(Protocol):
    """Where the tokens of one batch go, as :class:`moesim.placement.Flow` says it (float64).

    ``slot_tokens`` [L, R, C]; ``pairs``, ``rank_copies`` [L, R, R] (home rank -> expert rank); ``node_copies``
    [L, R, N]; ``forward`` [L, R, R] (landing rank -> expert rank in one node, the diagonal stays); ``tokens`` [R].
    """

    @property
    def slot_tokens(self) -> Array: ...  # noqa: D102
    @property
    def pairs(self) -> Array: ...  # noqa: D102
    @property
    def rank_copies(self) -> Array: ...  # noqa: D102
    @property
    def node_copies(self) -> Array: ...  # noqa: D102
    @property
    def forward(self) -> Array: ...  # noqa: D102
    @property
    def tokens(self) -> Array: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Transfer(Sealed):
    """What one phase of one batch puts on the network, all layers.

    Attributes
    ----------
    legs
        Bytes [L, R, R] of each leg. Legs are pipelined: what leaves rank x on leg i+1 has ended no earlier than leg
        i has arrived at x. A diagonal carries nothing.
    messages
        Messages a rank sends [L, R].
    floor_s
        Launch and synchronisation, paid once whatever the load.
    hidden_s
        Part of the floor during which bytes already move: a transfer shorter than this costs the floor alone.
    per_message_s
        Sender's cost of posting one message.
    sources
        Constant -> "measured|datasheet|assumed: where from".
    senders
        Who has bytes for whom, end to end [L, R, R] bool (home -> expert in dispatch, expert -> home in combine).
    own_bytes
        A rank's own outgoing bytes [L, R, 2]: inside its node, across nodes (without what it forwards for others).
    out_s, in_s
        Per leg, seconds [L, R] a rank's own copy engine (SMs) needs to push out, or take in, what that leg moves:
        a limit beside the links. Zero where there is none.
    drain_s
        Seconds [L, R] a rank still needs after its last byte arrived (copy out of the receive buffer).
    everyone
        Whether a rank waits for a word (count or flag) of every rank, also of those that send it nothing.
    sm_share
        Share of a rank's SMs that the kernels hold while they run, 0 to below 1.
    background
        Whether bytes move without kernels, which then run for the floor and the receive pass alone.
    """

    legs: tuple[Array, ...]
    messages: Array
    floor_s: float
    per_message_s: float
    sources: Mapping[str, str]
    senders: Array
    own_bytes: Array
    out_s: tuple[Array, ...] = ()
    in_s: tuple[Array, ...] = ()
    drain_s: Array | None = None
    everyone: bool = True
    hidden_s: float = 0.0
    sm_share: float = 0.0
    background: bool = False

    def __post_init__(self) -> None:
        if not self.legs:
            raise InputError("Transfer.legs: expected at least one leg")
        layers, ranks = np.shape(self.legs[0])[:2]
        sizes = {"layers": layers, "ranks": ranks, "to": ranks, "kinds": 2}
        legs = self.legs
        object.__setattr__(self, "legs", tuple(_leg(self, i, leg, sizes) for i, leg in enumerate(legs)))
        seal(self, "messages", self.messages, np.float64, ("layers", "ranks"), sizes)
        seal(self, "senders", self.senders, np.bool_, ("layers", "ranks", "to"), sizes)
        seal(self, "own_bytes", self.own_bytes, np.float64, ("layers", "ranks", "kinds"), sizes)
        nothing = np.zeros((layers, ranks))
        for name in ("out_s", "in_s"):
            given = getattr(self, name) or (nothing,) * len(self.legs)
            if len(given) != len(self.legs):
                raise InputError(f"Transfer.{name}: expected one array per leg ({len(self.legs)}), got {len(given)}")
            frozen = tuple(seal(self, name, part, np.float64, ("layers", "ranks"), sizes) for part in given)
            object.__setattr__(self, name, frozen)
        drain = nothing if self.drain_s is None else self.drain_s
        seal(self, "drain_s", drain, np.float64, ("layers", "ranks"), sizes)
        if not (np.isfinite(self.floor_s) and self.floor_s >= 0 and self.per_message_s >= 0):
            raise InputError(f"Transfer: floors must be finite and not negative, got {self.floor_s} s")
        if not 0 <= self.hidden_s <= self.floor_s:
            raise InputError(f"Transfer.hidden_s: expected 0 to floor_s ({self.floor_s} s), got {self.hidden_s} s")
        if not 0 <= self.sm_share < 1:
            raise InputError(f"Transfer.sm_share: expected 0 to below 1, got {self.sm_share}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in ("legs", "out_s", "in_s"):
            for part in getattr(self, name):
                part.flags.writeable = False

    @property
    def total_bytes(self) -> float:
        """Bytes of all legs and layers."""
        return float(sum(leg.sum() for leg in self.legs))


def _leg(owner: Transfer, index: int, given: Array, sizes: Mapping[str, int]) -> Array:
    leg = seal(owner, "legs", given, np.float64, ("layers", "ranks", "to"), sizes)
    if np.diagonal(leg, axis1=1, axis2=2).any():
        raise InputError(f"Transfer.legs[{index}]: the diagonal must be zero: what stays on a rank is not sent")
    return leg


@dataclass(frozen=True, eq=False)
class Timing(Sealed):
    """When one phase of one batch ends, all layers; every rank starts at 0.

    Attributes
    ----------
    arrive_s
        When a rank has received (and drained) its last inbound byte [L, R]; floor and latencies included.
    own_s
        Time a sender's own bytes need when nobody else sends [L, R]; floor and latencies included.
    link_bytes, link_time_s
        Bytes and bytes/bandwidth of every link [L, links], no floor.
    binding
        What limits each layer [L]: a link index, or ``links + rank`` where the copy engine of a rank does.
    floor_s
        When an empty message would be there [L].
    drain_s
        The part of ``arrive_s`` after the last byte [L]: the receive pass of the fullest rank, charged to all.
    senders, everyone
        As in :class:`Transfer`.
    taken
        Share of a rank's compute that the exchange takes while it runs [L].
    """

    arrive_s: Array
    own_s: Array
    link_bytes: Array
    link_time_s: Array
    binding: Array
    floor_s: Array
    drain_s: Array
    senders: Array
    everyone: bool = True
    taken: Array | None = None
    makespan_s: Array = field(init=False)

    def __post_init__(self) -> None:
        seal(self, "arrive_s", self.arrive_s, np.float64, ("layers", "ranks"))
        layers, ranks = self.arrive_s.shape
        sizes = {"layers": layers, "ranks": ranks, "to": ranks, "links": np.shape(self.link_bytes)[-1]}
        seal(self, "own_s", self.own_s, np.float64, ("layers", "ranks"), sizes)
        seal(self, "link_bytes", self.link_bytes, np.float64, ("layers", "links"), sizes)
        seal(self, "link_time_s", self.link_time_s, np.float64, ("layers", "links"), sizes)
        seal(self, "binding", self.binding, np.int64, ("layers",), sizes)
        seal(self, "floor_s", self.floor_s, np.float64, ("layers",), sizes)
        seal(self, "drain_s", self.drain_s, np.float64, ("layers",), sizes)
        seal(self, "senders", self.senders, np.bool_, ("layers", "ranks", "to"), sizes)
        seal(self, "taken", np.zeros(layers) if self.taken is None else self.taken, np.float64, ("layers",), sizes)
        seal(self, "makespan_s", self.arrive_s.max(axis=1), np.float64, ("layers",), sizes)


class Transport(Protocol):
    """Turns a flow into bytes on paths; combine reverses dispatch."""

    def __call__(self, flow: FlowLike, cluster: Cluster, spec: ModelSpec, direction: Direction) -> Transfer:
        """Return what the phase puts on the network."""
        ...


class Network(Protocol):
    """Turns bytes on paths into seconds."""

    def __call__(self, transfer: Transfer, cluster: Cluster) -> Timing:
        """Return when the phase ends."""
        ...


class Compute(Protocol):
    """Turns tokens per slot into the seconds of a rank's routed experts."""

    @property
    def sources(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def notes(self) -> tuple[str, ...]: ...  # noqa: D102

    def __call__(self, slot_tokens: Array, cluster: Cluster, spec: ModelSpec) -> Array:
        """Return seconds [..., R] from tokens per slot [..., R, C]."""
        ...


class ComputeFactory(Protocol):
    """Builds a compute model for a model on a cluster; ``path`` is its table, where it has one."""

    def __call__(self, spec: ModelSpec, cluster: Cluster, path: str | None = None) -> Compute:
        """Return the model."""
        ...


TRANSPORTS: Registry[Transport] = Registry(
    "transport",
    {
        "direct": "moesim.costs.transports.direct:direct",
        "rank-dedup": "moesim.costs.transports.direct:rank_dedup",
        "hierarchical": "moesim.costs.transports.hierarchical:hierarchical",
        "allgather": "moesim.costs.transports.collective:allgather",
        "nvlink": "moesim.costs.transports.collective:nvlink",
    },
    "moesim.transports",
)
"""Transports by name."""

NETWORKS: Registry[Network] = Registry(
    "network model",
    {
        "bottleneck": "moesim.costs.networks.bottleneck:bottleneck",
        "max-min": "moesim.costs.networks.maxmin:max_min",
    },
    "moesim.networks",
)
"""Network models by name."""

COMPUTES: Registry[ComputeFactory] = Registry(
    "compute model",
    {
        "roofline": "moesim.costs.roofline:roofline",
        "table": "moesim.costs.table:table",
        "roofline-cutlass": "moesim.costs.roofline:cutlass",
        "roofline-masked": "moesim.costs.roofline:masked",
        "roofline-contiguous": "moesim.costs.roofline:contiguous",
        "silicon": "moesim.costs.silicon:masked",
        "silicon-context": "moesim.costs.silicon:contiguous",
    },
    "moesim.computes",
)
"""Compute models by name."""
