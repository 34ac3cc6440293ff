"""Adding up steps to a Report."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.version import VERSION
from moesim.placement import EMPTY
from moesim.simulate.critical import critical_path
from moesim.simulate.inputs import Setup
from moesim.simulate.loads import Load
from moesim.simulate.phases import ATTENTION, COMBINE, DISPATCH, EXPERTS, PHASES, SHARED
from moesim.simulate.report import SPAN, Bottleneck, Report, max_over_mean
from moesim.simulate.training import SOURCES as TRAINING_SOURCES
from moesim.simulate.work import Timeline, Work
from moesim.trace import PHASES as TRACE_PHASES

_EXCHANGES: Final = (DISPATCH, COMBINE)
_PARTS: Final = {
    "all-to-all": _EXCHANGES,
    "experts": (EXPERTS,),
    "shared expert": (SHARED,),
    "attention": (ATTENTION,),
}


class Tally:
    """Sums over steps; memory does not grow with their number, but for the spans that were asked for."""

    def __init__(self, setup: Setup, engine: str) -> None:
        self.setup, self.engine = setup, engine
        placement, cluster = setup.placement, setup.cluster
        L, R = placement.layers, placement.ranks
        self.step_s: list[float] = []
        self.busy_s = np.zeros((len(PHASES), L, R))
        self.wait_s = np.zeros((L, R))
        self.critical_s = np.zeros((len(PHASES), L, R))
        self.slot_tokens = np.zeros(placement.experts.shape)
        self.imbalances: list[float] = []
        self.link_bytes = np.zeros(cluster.links)
        # how often each link, or after them the copy engine of each rank, limits an exchange
        self.binding = np.zeros((2, L, cluster.links + R), dtype=np.int64)
        self.floor_s = np.zeros((2, L))
        self.node_bytes = np.zeros((cluster.nodes, cluster.nodes))
        self.spans: list[Array] = []
        self.outside_s: list[float] = []
        self.dropped = 0

    def add(self, step: int, load: Load, timeline: Timeline, *, spans: bool) -> None:
        """Add one step."""
        busy_s, wait_s = split(load.work, timeline)
        self.step_s.append(timeline.step_s)
        self.outside_s.append(float(load.outside_s.max()))
        self.dropped += load.dropped
        L = len(self.wait_s)
        self.busy_s += folded(busy_s.sum(axis=0), L)
        self.wait_s += folded(wait_s.sum(axis=(0, 1)), L)
        self.critical_s += folded(critical_path(load.work, timeline, self.setup.schedule), L)
        self.slot_tokens += load.slot_tokens
        self.imbalances.append(float(max_over_mean(load.slot_tokens.sum(axis=-1)).mean()))
        self.link_bytes += load.link_bytes
        way, layer = (np.asarray(index) for index in np.indices(load.binding.shape[1:]))
        for m in range(len(load.binding)):
            np.add.at(self.binding, (way, layer_of(layer, L), load.binding[m]), 1)
        self.floor_s += folded(load.work.word_s.sum(axis=0)[..., None], L)[..., 0]
        self.node_bytes += load.node_bytes
        if spans:
            self.spans.append(_spans(step, timeline, wait_s, L))

    def report(self, step_tokens: Array | None = None, seen: Array | None = None) -> Report:
        """Return the report of all steps added; their tokens and which were seen where they are of several setups."""
        setup = self.setup
        return Report(
            facts=_facts(setup, self.engine),
            step_s=np.array(self.step_s),
            step_tokens=np.diff(setup.batches.offsets) if step_tokens is None else step_tokens,
            seen=setup.seen if seen is None else seen,
            busy_s=dict(zip(PHASES, self.busy_s, strict=True)),
            wait_s=self.wait_s,
            critical_s=dict(zip(PHASES, self.critical_s, strict=True)),
            tokens=self.slot_tokens.sum(axis=-1),
            batch_imbalance=float(np.mean(self.imbalances)),
            link_bytes=self.link_bytes,
            link_name=setup.cluster.link_name,
            link_bandwidth=setup.cluster.link_bandwidth,
            node_bytes=self.node_bytes,
            where=self._bottleneck(),
            rank_node=setup.cluster.node,
            spans=np.concatenate(self.spans) if self.spans else None,
            notes=setup.notes,
            sources=dict(setup.costs.sources) | (TRAINING_SOURCES if setup.training else {}),
            outside_s=np.array(self.outside_s),
            stands_for=setup.costs.spec.stands_for,
            dropped=self.dropped,
        )

    def _bottleneck(self) -> Bottleneck:
        """Name the phase, layer, rank, link and expert that hold the steps up most."""
        spent, placement = self.critical_s, self.setup.placement
        name = max(_PARTS, key=lambda part: float(spent[list(_PARTS[part])].sum()))
        part_s = spent[list(_PARTS[name])]
        layer = int(np.argmax(part_s.sum(axis=(0, 2))))
        rank = int(np.argmax(part_s[:, layer].sum(axis=0)))
        experts = placement.experts[layer]
        # an expert's tokens on all its ranks: that is what makes it hot
        held = experts != EMPTY
        loads = np.bincount(experts[held], weights=self.slot_tokens[layer][held], minlength=placement.num_experts)
        on_rank = experts[rank][experts[rank] != EMPTY]
        hottest = on_rank[np.argmax(loads[on_rank])] if len(on_rank) else np.argmax(loads)
        total = spent.sum()
        return Bottleneck(
            part=name,
            share=float(part_s.sum() / total) if total else 0.0,
            layer=self.setup.costs.spec.layer_ids[layer],
            rank=rank,
            link=self._link(layer) if name == "all-to-all" else "",
            expert=int(hottest),
        )

    def _link(self, layer: int) -> str:
        """Name what limits the costlier exchange of a layer most often."""
        spent = self.critical_s[list(_EXCHANGES), layer].sum(axis=1)
        way = int(np.argmax(spent))
        if 2 * self.floor_s[way, layer] > spent[way]:
            return "launch and latency"
        most, names = int(np.argmax(self.binding[way, layer])), self.setup.cluster.link_name
        return names[most] if most < len(names) else f"copy engine of rank {most - len(names)}"


def split(work: Work, timeline: Timeline) -> tuple[Array, Array]:
    """Return the busy ``[M, phases, L, R]`` and the waiting seconds ``[M, phases, L, R]`` of every rank.

    In an exchange a rank is busy as long as its bytes would take if all ranks had begun together; what is beyond
    that it waits for others.
    """
    busy_s = timeline.end_s - timeline.start_s
    wait_s = np.zeros_like(busy_s)
    for way, phase in enumerate(_EXCHANGES):
        wait_s[:, phase] = np.maximum(busy_s[:, phase] - work.arrive_s[:, way], 0.0)
        busy_s[:, phase] -= wait_s[:, phase]
    return busy_s, wait_s


def layer_of(index: Array, L: int) -> Array:
    """Return the layer of each stage of a step: forward through all, and where it trains back again."""
    return np.where(index < L, index, 2 * L - 1 - index)


def folded(values: Array, L: int) -> Array:
    """Return ``[..., L, R]`` of forward and backward stages ``[..., L or 2 L, R]`` together."""
    return values if values.shape[-2] == L else values[..., :L, :] + values[..., : -L - 1 : -1, :]


def _spans(step: int, timeline: Timeline, wait_s: Array, L: int) -> Array:
    """Return the intervals of one step, in order of micro-batch, phase, layer and rank."""
    spans = np.zeros(timeline.start_s.shape, dtype=SPAN)
    spans["step"] = step
    for axis, name in enumerate(("micro_batch", "phase", "layer", "rank")):
        others = [other for other in range(4) if other != axis]
        spans[name] = np.expand_dims(np.arange(spans.shape[axis]), others)
    spans["layer"] = layer_of(spans["layer"], L)
    spans["start_s"], spans["stop_s"], spans["wait_s"] = timeline.start_s, timeline.end_s, wait_s
    flat: Array = spans.ravel()
    return flat[flat["stop_s"] > flat["start_s"]]


def _facts(setup: Setup, engine: str) -> dict[str, Any]:
    batches, costs, placement = setup.batches, setup.costs, setup.placement
    phases = [TRACE_PHASES[code] for code in np.unique(batches.phase)]
    return {
        "moesim": VERSION,
        "model": costs.spec.name,
        "topology": setup.cluster.name,
        "ranks": placement.ranks,
        "slots_per_rank": placement.slots_per_rank,
        "phase": " and ".join(phases),
        "tokens_per_rank": batches.tokens_per_rank,
        "policy": setup.policy,
        "transport": costs.transport,
        "network": costs.network,
        "schedule": setup.schedule.name,
        "engine": engine,
        "seed": setup.seed,
        "jitter": setup.jitter,
        "attention_tp": costs.attention_tp,
        "training": None if setup.training is None else dataclasses.asdict(setup.training),
        "layer_ids": list(costs.spec.layer_ids),
        "digests": {
            "trace": batches.trace.digest,
            "batches": batches.digest,
            "cluster": setup.cluster.digest,
            "placement": placement.digest,
        },
    }
