"""Costs: everything that turns counts into seconds, and where each of its constants comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moesim.base.arrays import Array, digest
from moesim.base.errors import InputError
from moesim.costs import attention, outside
from moesim.costs.roofline import Device, mlp_s, uses_fp4, uses_fp8
from moesim.costs.types import (
    COMPUTES,
    DIRECTIONS,
    NETWORKS,
    TRANSPORTS,
    Compute,
    Direction,
    FlowLike,
    Timing,
    Transfer,
)
from moesim.spec import ModelSpec

if TYPE_CHECKING:
    from moesim.cluster import Cluster

Shared = Literal["sequential", "overlap"]


@dataclass(frozen=True, eq=False)
class Costs:
    """Compute, transport and network models of one model on one cluster; built by :meth:`default`.

    Attributes
    ----------
    spec, cluster
        What is priced, and on what.
    transport, network
        Names in ``TRANSPORTS`` and ``NETWORKS``.
    compute
        Model of the routed experts.
    compute_name
        Its name in ``COMPUTES``, with the path of its table where it has one.
    shared_expert
        ``"sequential"``: after the gate, before dispatch; ``"overlap"``: on its own stream beside dispatch.
    attention_tp
        Consecutive ranks that share attention (tensor parallel); 1: every rank attends to its own tokens.
    """

    spec: ModelSpec
    cluster: Cluster
    transport: str
    network: str
    compute: Compute
    compute_name: str
    shared_expert: Shared = "sequential"
    attention_tp: int = 1
    _device: Device = field(init=False, repr=False)
    _transport_sources: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # one rank of two nodes shows whether the transport fits the cluster, and what its constants are
        few = self.cluster.restrict([int(self.cluster.rank_of_node(n)[0]) for n in range(min(self.cluster.nodes, 2))])
        plan = TRANSPORTS.get(self.transport)
        sources: dict[str, str] = {}
        for direction in DIRECTIONS:
            sources.update(plan(_NoTokens(few), few, self.spec, direction).sources)
        object.__setattr__(self, "_transport_sources", sources)
        NETWORKS.get(self.network)
        if self.shared_expert not in ("sequential", "overlap"):
            raise InputError(f"shared_expert: expected 'sequential' or 'overlap', got {self.shared_expert!r}")
        if self.attention_tp < 1 or self.cluster.ranks % self.attention_tp:
            raise InputError(
                f"attention_tp: {self.attention_tp} does not divide the {self.cluster.ranks} ranks of "
                f"{self.cluster.name}; choose a divisor"
            )
        object.__setattr__(self, "_device", Device.of(self.cluster, uses_fp8(self.spec), uses_fp4(self.spec)))

    @classmethod
    def default(
        cls,
        spec: ModelSpec,
        cluster: Cluster,
        transport: str | None = None,
        network: str = "bottleneck",
        compute: str | Path = "roofline",
        shared_expert: Shared = "sequential",
        decode: bool = False,
        attention_tp: int = 1,
    ) -> Costs:
        """Return the usual costs.

        Parameters
        ----------
        transport
            Name of a transport; None takes ``direct`` in decode and ``hierarchical`` otherwise, as serving engines do.
        compute
            Name of a compute model, or the path of a kernel cost table.
        attention_tp
            Consecutive ranks that share attention.

        Raises
        ------
        UnknownName
            If there is no such transport, network or compute model.
        FormatError
            If the kernel cost table is not what it should be.
        """
        name, path = str(compute), None
        if isinstance(compute, Path) or name.endswith(".json"):
            name, path = "table", name
        model = COMPUTES.get(name)(spec, cluster, path)
        chosen = transport or ("direct" if decode else "hierarchical")
        return cls(spec, cluster, chosen, network, model, path or name, shared_expert, attention_tp)

    def with_transport(self, transport: str) -> Costs:
        """Return the same costs with another transport."""
        return replace(self, transport=transport)

    @property
    def sources(self) -> Mapping[str, str]:
        """Constant -> "measured|datasheet|derived|assumed: value, source", of the cluster and of every model used."""
        merged = dict(self.cluster.sources)
        rest = attention.sources(self.cluster) | outside.sources(self.cluster)
        for part in (self._transport_sources, self.compute.sources, rest):
            merged.update(part)
        return merged

    @property
    def partial_note(self) -> str:
        """What a reader must know where some MoE layers of the model are left out; else empty."""
        if not self.spec.left_out:
            return ""
        return (
            f"the trace holds {self.spec.layers} of the {self.spec.moe_layers} MoE layers of {self.spec.name}: steps, "
            "bytes and moves are of these alone; in the whole model, break-even and horizon each stands for "
            f"{self.spec.stands_for:.3g}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of these costs: the assumptions, and whether layers are left out."""
        return (self.partial_note, *self.assumptions) if self.partial_note else self.assumptions

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What was assumed."""
        extra: list[str] = []
        if self.spec.attention is None:
            extra.append(f"attention of {self.spec.name} is not known: only its gate is priced")
        if self.spec.dense_layers and not self.spec.dense_intermediate:
            extra.append(f"dense layers of {self.spec.name}: their width is not known, only attention is priced")
        if not self.spec.vocab:
            extra.append(f"output head of {self.spec.name} is not known: not priced")
        extra.append("left out: sampling, host time, power throttling")
        return (*self.compute.notes, *extra)

    @cached_property
    def digest(self) -> str:
        """16 hex digits over everything that changes a result."""
        # a table counts by its content, wherever it lies
        compute = getattr(self.compute, "digest", self.compute_name)
        names = (self.transport, self.network, compute, self.shared_expert, self.attention_tp)
        return digest(self.spec, self.cluster.digest, names)

    def experts_s(self, slot_tokens: Array) -> Array:
        """Return the seconds of each rank's routed experts [..., R] from tokens per slot [..., R, C]."""
        return self.compute(np.asarray(slot_tokens, np.float64), self.cluster, self.spec)

    def attention_s(self, tokens: Array, context: Array, decode: bool) -> Array:
        """Return the seconds of attention and gate of one layer [..., R]; see ``costs.attention``."""
        return attention.attention_s(tokens, context, decode, self.cluster, self.spec, self.attention_tp)

    def outside_s(self, attention: Array, tokens: Array, logits: Array) -> Array:
        """Return the seconds of each rank outside the MoE layers [R]; see ``costs.outside``."""
        return outside.outside_s(attention, tokens, logits, self.cluster, self.spec)

    def shared_s(self, tokens: Array) -> Array:
        """Return the seconds of the shared experts on each rank [..., R]; zero where the model has none."""
        tokens = np.asarray(tokens, np.float64)
        if not self.spec.shared_intermediate:
            return np.zeros(np.broadcast_shapes(tokens.shape, (self.cluster.ranks,)))
        return mlp_s(tokens[..., None], self._device, self.spec, self.spec.shared_intermediate, permuted=False)

    def transfer(self, flow: FlowLike, direction: Direction) -> Transfer:
        """Return the bytes of one phase."""
        return TRANSPORTS.get(self.transport)(flow, self.cluster, self.spec, direction)

    def dispatch(self, flow: FlowLike) -> Timing:
        """Return the timing of tokens on their way to experts, all layers."""
        return NETWORKS.get(self.network)(self.transfer(flow, "dispatch"), self.cluster)

    def combine(self, flow: FlowLike) -> Timing:
        """Return the timing of results on their way home, all layers."""
        return NETWORKS.get(self.network)(self.transfer(flow, "combine"), self.cluster)


class _NoTokens:
    """A flow without tokens, to ask a transport for its sources."""

    def __init__(self, cluster: Cluster) -> None:
        ranks = cluster.ranks
        self.slot_tokens: Any = np.zeros((1, ranks, 1))
        self.pairs: Any = np.zeros((1, ranks, ranks))
        self.rank_copies: Any = self.pairs
        self.node_copies: Any = np.zeros((1, ranks, cluster.nodes))
        self.forward: Any = self.pairs
        self.tokens: Any = np.zeros(ranks)
