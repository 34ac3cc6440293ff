"""Report: what a simulation found.

Arrays are sums over the simulated steps, scalars are means per step; both say so in their descriptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import InputError
from moesim.simulate.phases import PHASES
from moesim.simulate.summary import summary

SPAN: Final = np.dtype(
    [
        ("step", "<i4"),
        ("layer", "<i4"),
        ("micro_batch", "<i4"),
        ("rank", "<i4"),
        ("phase", "<i4"),
        ("start_s", "<f8"),
        ("stop_s", "<f8"),
        ("wait_s", "<f8"),
    ]
)
"""One interval of one rank: phase is an index into PHASES, times count from the start of its step."""


@dataclass(frozen=True)
class Bottleneck:
    """The place that holds a step up most.

    Parameters
    ----------
    part
        Part of the layers with the most seconds on the critical path: all-to-all, experts, shared expert, attention.
    share
        Its fraction of the step time, 0..1.
    layer
        Decoder index of the layer in which that part costs most.
    rank
        Rank that it costs most there.
    link
        What limits the exchange there, if the part is all-to-all: a link, a rank's copy engine, or latency.
    expert
        Of the routed experts on that rank, the one with the most tokens in the layer.
    """

    part: str
    share: float
    layer: int
    rank: int
    link: str
    expert: int

    def __str__(self) -> str:
        link = f", {self.link}" if self.link else ""
        return f"layer {self.layer}, rank {self.rank}{link}, expert {self.expert} ({self.part}, {self.share:.0%})"


@dataclass(frozen=True, eq=False)
class Report(Sealed):
    """What a simulation found.

    Symbols: S steps, L MoE layers, R ranks, N nodes.

    Parameters
    ----------
    facts
        What was simulated: model, topology, trace, policy, transport, network, schedule, engine, and digests.
    step_s
        Seconds of each step ``[S]``, from its start until the last rank has its last result.
    step_tokens
        Tokens that each step processes ``[S]``.
    seen
        Whether the plan was fitted on tokens of each step ``[S]``; False also where that is not known, which
        ``notes`` then says.
    busy_s
        Phase name to seconds ``[L, R]`` that each rank works in it, or waits for bytes that are under way;
        sum over steps and micro-batches.
    wait_s
        Seconds ``[L, R]`` that each rank waits for others in dispatch and combine, beyond what the exchange would
        take if all had started together; sum over steps and micro-batches.
    critical_s
        Phase name to seconds ``[L, R]`` on the critical path: the chain of work and transfers, each waiting for
        the one before, that ends with the step. All of them together are the sum of ``step_s``.
    tokens
        Token-expert pairs computed ``[L, R]``, sum over steps (expected values under an expected policy).
    batch_imbalance
        Mean over steps and layers of max over mean tokens of a rank; 1 is balance.
    link_bytes, link_name, link_bandwidth
        Bytes over each directed link, sum over steps and layers, its name and its effective bytes/s.
    node_bytes
        Bytes from node to node ``[N, N]``, sum over steps and layers; the diagonal is traffic between ranks of a
        node.
    where
        The bottleneck.
    spans
        Intervals of dtype :data:`SPAN`, where they were asked for.
    rank_node
        Node of each rank ``[R]``.
    notes
        What a reader must know before trusting the numbers: resampled batches, replayed dimensions, assumptions.
    sources
        Constant to where it comes from.
    outside_s
        Seconds of each step outside its MoE layers ``[S]``, of the slowest rank: dense layers, embeddings, output
        head. They are not part of ``step_s``.
    stands_for
        MoE layers of the model for each that ran, where the trace holds only some of them; 1 where it holds all.
    dropped
        Token-expert pairs beyond the capacity of their expert, sum over steps.
    """

    facts: Mapping[str, Any]
    step_s: Array
    step_tokens: Array
    seen: Array
    busy_s: Mapping[str, Array]
    wait_s: Array
    critical_s: Mapping[str, Array]
    tokens: Array
    batch_imbalance: float
    link_bytes: Array
    link_name: tuple[str, ...]
    link_bandwidth: Array
    node_bytes: Array
    where: Bottleneck
    rank_node: Array
    spans: Array | None = None
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    outside_s: Array | None = None
    stands_for: float = 1.0
    dropped: int = 0

    def __post_init__(self) -> None:
        seal(self, "step_s", self.step_s, np.float64, ("steps",))
        if not len(self.step_s):
            raise InputError("Report.step_s: expected at least one step, got none")
        L, R = np.shape(self.tokens)
        sizes = {"steps": len(self.step_s), "links": len(self.link_name), "layers": L, "ranks": R}
        outside = np.zeros(len(self.step_s)) if self.outside_s is None else self.outside_s
        seal(self, "outside_s", outside, np.float64, ("steps",), sizes)
        seal(self, "step_tokens", self.step_tokens, np.int64, ("steps",), sizes)
        seal(self, "seen", self.seen, np.bool_, ("steps",), sizes)
        seal(self, "rank_node", self.rank_node, np.int32, ("ranks",), sizes)
        seal(self, "tokens", self.tokens, np.float64, ("layers", "ranks"), sizes)
        seal(self, "wait_s", self.wait_s, np.float64, ("layers", "ranks"), sizes)
        seal(self, "link_bytes", self.link_bytes, np.float64, ("links",), sizes)
        seal(self, "link_bandwidth", self.link_bandwidth, np.float64, ("links",), sizes)
        nodes = int(self.rank_node.max()) + 1
        seal(self, "node_bytes", self.node_bytes, np.float64, ("nodes", "nodes"), {"nodes": nodes})
        for name in ("busy_s", "critical_s"):
            arrays = getattr(self, name)
            if set(arrays) != set(PHASES):
                raise InputError(f"Report.{name}: expected the phases {PHASES}, got {tuple(arrays)}")
            checked = {phase: _matrix(f"{name}[{phase!r}]", arrays[phase], (L, R)) for phase in PHASES}
            object.__setattr__(self, name, MappingProxyType(checked))
        if self.spans is not None:
            seal(self, "spans", self.spans, SPAN, ("spans",))
        object.__setattr__(self, "facts", MappingProxyType(dict(self.facts)))
        object.__setattr__(self, "sources", MappingProxyType(dict(self.sources)))

    def __reduce__(self) -> tuple[Any, ...]:
        # mapping proxies do not pickle
        values = {k: dict(v) if isinstance(v, MappingProxyType) else v for k, v in self.__dict__.items()}
        return (_rebuild, (values,))

    @property
    def steps(self) -> int:
        """Number of simulated steps, S."""
        return len(self.step_s)

    @property
    def mean_step_s(self) -> float:
        """Mean seconds of a step."""
        return float(self.step_s.mean())

    @property
    def p50_step_s(self) -> float:
        """Median seconds of a step."""
        return float(np.quantile(self.step_s, 0.5))

    @property
    def p99_step_s(self) -> float:
        """99th percentile of the seconds of a step."""
        return float(np.quantile(self.step_s, 0.99))

    @property
    def tokens_per_s(self) -> float:
        """Tokens that the whole group takes through the MoE layers in a second."""
        return float(self.step_tokens.sum() / self.step_s.sum())

    @property
    def model_step_s(self) -> float:
        """Mean seconds of a step of the whole model: all its MoE layers and what stands outside them."""
        return float(self._whole_s.mean())

    @property
    def model_tokens_per_s(self) -> float:
        """Tokens that the whole group processes in a second, all of the model counted."""
        return float(self.step_tokens.sum() / self._whole_s.sum())

    @property
    def _whole_s(self) -> Array:
        assert self.outside_s is not None  # set when the report was made
        return np.asarray(self.step_s * self.stands_for + self.outside_s)

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Tokens of the whole model a second and GPU."""
        return self.model_tokens_per_s / len(self.rank_node)

    @property
    def all_to_all_s(self) -> float:
        """Mean seconds of a step in which the critical path runs through dispatch or combine."""
        return self._critical("dispatch", "combine")

    @property
    def compute_s(self) -> float:
        """Mean seconds of a step in which the critical path runs through routed or shared experts."""
        return self._critical("experts", "shared")

    @property
    def attention_s(self) -> float:
        """Mean seconds of a step in which the critical path runs through attention and gate."""
        return self._critical("attention")

    @property
    def mean_wait_s(self) -> float:
        """Mean over ranks and steps of the seconds a rank waits for others."""
        return float(self.wait_s.sum() / (self.steps * len(self.rank_node)))

    @property
    def imbalance(self) -> float:
        """Mean over layers of max over mean tokens of a rank, over the whole window; 1 is balance."""
        return float(np.mean(max_over_mean(self.tokens)))

    @property
    def cross_node_bytes(self) -> float:
        """Mean bytes that leave their node in a step."""
        return float((self.node_bytes.sum() - np.trace(self.node_bytes)) / self.steps)

    @property
    def link_utilisation(self) -> Array:
        """Part of the time, 0..1, that each link would need to carry its bytes ``[links]``."""
        used: Array = self.link_bytes / (self.link_bandwidth * self.step_s.sum())
        return used

    @property
    def layer_split_s(self) -> dict[str, Array]:
        """Mean seconds of a rank and step in each layer ``[L]``: every phase, and ``"wait"``."""
        scale = self.steps * len(self.rank_node)
        split = {phase: self.busy_s[phase].sum(axis=1) / scale for phase in PHASES}
        return split | {"wait": self.wait_s.sum(axis=1) / scale}

    @property
    def bottleneck(self) -> str:
        """The bottleneck in words: ``"layer 41, rank 37, NIC in, expert 112 (all-to-all, 48%)"``."""
        return str(self.where)

    def _critical(self, *phases: str) -> float:
        return float(sum(self.critical_s[phase].sum() for phase in phases) / self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, the same for the same inputs; seconds, bytes and tokens."""
        busiest = np.argsort(-self.link_utilisation, kind="stable")[:8]
        used = self.link_utilisation
        return {
            "schema": 1,
            **self.facts,
            "steps": self.steps,
            "tokens": int(self.step_tokens.sum()),
            "step_s": self.mean_step_s,
            "p50_step_s": self.p50_step_s,
            "p99_step_s": self.p99_step_s,
            "all_to_all_s": self.all_to_all_s,
            "compute_s": self.compute_s,
            "attention_s": self.attention_s,
            "wait_s": self.mean_wait_s,
            "tokens_per_s": self.tokens_per_s,
            "model_step_s": self.model_step_s,
            "model_tokens_per_s": self.model_tokens_per_s,
            "tokens_per_s_per_gpu": self.tokens_per_s_per_gpu,
            "dropped": self.dropped,
            "imbalance": self.imbalance,
            "batch_imbalance": self.batch_imbalance,
            "cross_node_bytes": self.cross_node_bytes,
            "bottleneck": self.bottleneck,
            "seen_steps": int(self.seen.sum()),
            "step_times_s": self.step_s.tolist(),
            "layers": {name: values.tolist() for name, values in self.layer_split_s.items()},
            "links": [{"name": self.link_name[i], "utilisation": float(used[i])} for i in busiest if used[i] > 0],
            "notes": list(self.notes),
            "sources": dict(sorted(self.sources.items())),
        }

    def summary(self) -> str:
        """Return one readable screen of plain text."""
        return summary(self)


def max_over_mean(tokens: Array) -> Array:
    """Return max over mean along the last axis, 1 where a row is empty.

    Parameters
    ----------
    tokens
        Loads ``[..., ranks]``.
    """
    mean = tokens.mean(axis=-1)
    ratio: Array = np.divide(tokens.max(axis=-1), mean, out=np.ones_like(mean), where=mean > 0)
    return ratio


def _matrix(place: str, value: Array, shape: tuple[int, int]) -> Array:
    array = np.array(value, dtype=np.float64)
    if array.shape != shape:
        raise InputError(f"Report.{place}: expected axes [layers, ranks] of {shape}, got {array.shape}")
    array.flags.writeable = False
    return array


def _rebuild(values: dict[str, Any]) -> Report:
    return Report(**values)
