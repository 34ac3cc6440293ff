"""From the tokens of one step to its Work, and the bytes and tokens it moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from moesim.base.arrays import Array
from moesim.costs import NETWORKS, TRANSPORTS, Timing
from moesim.costs.transports.parts import between_nodes
from moesim.placement import dispatch, table_of
from moesim.simulate.inputs import Setup
from moesim.simulate.jitter import jittered
from moesim.simulate.training import ATTENTION_BACKWARD, EXPERTS_BACKWARD, drop_beyond
from moesim.simulate.work import Work, pack
from moesim.trace import DECODE

_CHUNK_ELEMENTS = 4_000_000
"""Elements of one [layers, ranks, ranks] array held at a time (32 MB); more layers go in several passes.

Larger chunks were slower at 1,024 ranks: such arrays are mapped and unmapped instead of reused.
"""


@dataclass(frozen=True, eq=False)
class Load:
    """One step, ready for an engine, with what the report counts.

    Parameters
    ----------
    work
        Durations for the engines.
    slot_tokens
        Token-expert pairs in each slot ``[L, R, C]``.
    link_bytes
        Bytes over each link ``[links]``.
    binding
        What limits each exchange ``[M, 2, L]``, see :class:`moesim.costs.Timing`.
    node_bytes
        Bytes from node to node ``[N, N]``.
    outside_s
        Seconds of each rank outside the MoE layers ``[R]``.
    dropped
        Picks that no expert had room for.
    """

    work: Work
    slot_tokens: Array
    link_bytes: Array
    binding: Array
    node_bytes: Array
    outside_s: Array
    dropped: int = 0


class _Chunk(NamedTuple):
    """Some layers of a micro-batch: what :class:`Load` needs of them."""

    slot_tokens: Array
    timings: tuple[Timing, ...]
    sends: tuple[Array, ...]
    node_bytes: Array


def cut(home: Array, ranks: int, parts: int) -> Array:
    """Return the micro-batch ``[n]`` of each token: every rank's tokens are cut into equal runs, in order.

    Parameters
    ----------
    home
        Home rank of each token ``[n]``.
    ranks, parts
        Number of ranks and of micro-batches.
    """
    order = np.argsort(home, kind="stable")
    count = np.bincount(home, minlength=ranks)
    place = np.empty(len(home), dtype=np.int64)
    place[order] = np.arange(len(home)) - np.repeat(np.cumsum(count) - count, count)
    part: Array = place * parts // np.maximum(count, 1)[home]
    return part


class Loader:
    """Makes the Load of each step; what does not change between steps is made once.

    Parameters
    ----------
    setup
        What is simulated.
    before
        Steps that came before the first of the setup, where a trace is replayed in parts: no two draw the same noise.
    """

    def __init__(self, setup: Setup, before: int = 0) -> None:
        self.setup, self.before = setup, before
        cluster, placement = setup.cluster, setup.placement
        self.network = NETWORKS.get(setup.costs.network)
        self.table = table_of(setup.policy, placement, cluster.node)
        self.chunk = max(1, _CHUNK_ELEMENTS // cluster.ranks**2)

    def load(self, step: int) -> Load:
        """Return the load of one step."""
        setup, batches, micro_batches = self.setup, self.setup.batches, self.setup.schedule.micro_batches
        routes, home, position = batches.routes(step), batches.homes(step), batches.positions(step)
        phase, dropped = int(batches.phase[step]), 0
        # who needs the output head
        ends = batches.answered(step) if setup.training is None else np.ones(len(home), bool)
        if setup.training is not None and setup.training.capacity_factor is not None:
            weights = batches.weights(step) if setup.training.drop == "probs" else None
            routes, dropped = drop_beyond(
                routes, home, setup.costs.spec.experts, batches.ranks, setup.training.capacity_factor, weights
            )
        if micro_batches == 1:
            load = self._part(routes, home, position, ends, phase == DECODE)
        else:
            part = cut(home, batches.ranks, micro_batches)
            rows = [np.flatnonzero(part == m) for m in range(micro_batches)]
            load = _join([self._part(routes[r], home[r], position[r], ends[r], phase == DECODE) for r in rows])
        return replace(load, work=jittered(load.work, setup.jitter, setup.seed, self.before + step), dropped=dropped)

    def _part(self, routes: Array, home: Array, position: Array, ends: Array, decode: bool) -> Load:
        """Return the load of one micro-batch, layers in chunks that fit memory."""
        costs, R = self.setup.costs, self.setup.cluster.ranks
        L = routes.shape[1]
        tokens = np.bincount(home, minlength=R).astype(np.float64)
        context = np.bincount(home, weights=position + 1.0, minlength=R)
        attention = costs.attention_s(tokens, context, decode)
        outside = costs.outside_s(attention, tokens, np.bincount(home, weights=ends, minlength=R))
        chunks = [self._layers(routes, home, slice(a, min(a + self.chunk, L))) for a in range(0, L, self.chunk)]
        slot_tokens, timings, packed, node_bytes = zip(*chunks, strict=True)
        slots = np.concatenate(slot_tokens)

        def whole(name: str, ways: tuple[int, int] = (0, 1)) -> Array:
            """Return an attribute of both exchanges, all layers: [1, 2, L, ...]."""
            both = np.stack([np.concatenate([getattr(t[way], name) for t in timings]) for way in ways])[None]
            both.flags.writeable = False  # nobody else holds it: Work need not copy
            return both

        sends = np.stack([np.concatenate([bits[way] for bits in packed]) for way in (0, 1)])[None]
        work = Work(
            attention_s=_every_layer(attention, L),
            shared_s=_every_layer(costs.shared_s(tokens), L),
            experts_s=costs.experts_s(slots)[None],
            arrive_s=whole("arrive_s"),
            own_s=whole("own_s") + whole("drain_s")[..., None],
            word_s=whole("floor_s"),
            sends=sends,
            taken=whole("taken"),
            everyone=(timings[0][0].everyone, timings[0][1].everyone),
        )
        load = Load(work, slots, whole("link_bytes").sum(axis=(0, 1, 2)), whole("binding"), sum(node_bytes), outside)
        if self.setup.training is None:
            return load
        back = replace(
            work,
            attention_s=work.attention_s * ATTENTION_BACKWARD.value,
            shared_s=work.shared_s * EXPERTS_BACKWARD.value,
            experts_s=work.experts_s * EXPERTS_BACKWARD.value,
            arrive_s=whole("arrive_s", (2, 1)),
            own_s=whole("own_s", (2, 1)) + whole("drain_s", (2, 1))[..., None],
            word_s=whole("floor_s", (2, 1)),
            taken=whole("taken", (2, 1)),
        )
        return replace(
            load,
            work=then_backwards(work, back),
            link_bytes=load.link_bytes + whole("link_bytes", (2, 1)).sum(axis=(0, 1, 2)),
            binding=np.concatenate([load.binding, whole("binding", (2, 1))[..., ::-1]], axis=-1),
            outside_s=outside * (1 + ATTENTION_BACKWARD.value),
        )

    def _layers(self, routes: Array, home: Array, layers: slice) -> _Chunk:
        setup, cluster = self.setup, self.setup.cluster
        flow = dispatch(
            routes,
            home,
            setup.placement,
            cluster.node,
            cluster.landing,
            policy=setup.policy,
            table=None if self.table is None else self.table[layers],
            layers=layers,
            seed=setup.seed,
        )
        there, back = setup.costs.transfer(flow, "dispatch"), setup.costs.transfer(flow, "combine")
        transfers = [there, back]
        if setup.training is not None:
            # gradients of results: on dispatch's way, in the dtype of combine
            spec = replace(setup.costs.spec, dispatch_bytes=setup.costs.spec.combine_bytes)
            transfers.append(TRANSPORTS.get(setup.costs.transport)(flow, cluster, spec, "dispatch"))
        moved = transfers if setup.training is None else [*transfers, back]
        node_bytes = np.zeros((cluster.nodes, cluster.nodes))
        for leg in (leg for part in moved for leg in part.legs):
            between_nodes(leg, cluster.node, node_bytes)
        timings = [self.network(part, cluster) for part in transfers]
        packed = pack(timings[0].senders), pack(timings[1].senders)
        # of what is per pair of ranks only the bits are kept: the rest is let go with the layers
        return _Chunk(flow.slot_tokens, tuple(map(_slim, timings)), packed, node_bytes)


def _slim(timing: Timing) -> Timing:
    """Return a timing without its flags per pair of ranks, which may be most of the memory."""
    L, R = timing.arrive_s.shape
    return replace(timing, senders=np.broadcast_to(np.False_, (L, R, R)))


def then_backwards(work: Work, back: Work) -> Work:
    """Return the layers of a forward pass, and after them those of the backward pass in reverse.

    Inside a backward layer attention stands before the exchanges though it comes after them: the same seconds, in
    the place where engines look for it.
    """
    names = {"attention_s": 1, "shared_s": 1, "experts_s": 1, "arrive_s": 2, "own_s": 2, "word_s": 2, "sends": 2}
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(work, name), np.flip(getattr(back, name), axis)], axis)
        for name, axis in {**names, "taken": 2}.items()
    }
    return replace(work, **joined)


def _every_layer(seconds: Array, L: int) -> Array:
    return np.broadcast_to(seconds, (1, L, len(seconds)))


def _join(parts: list[Load]) -> Load:
    """Return micro-batches as one load."""
    names = ("attention_s", "shared_s", "experts_s", "arrive_s", "own_s", "word_s", "sends", "taken")
    joined = {name: np.concatenate([getattr(part.work, name) for part in parts]) for name in names}
    return Load(
        Work(**joined, everyone=parts[0].work.everyone),
        slot_tokens=np.sum([part.slot_tokens for part in parts], axis=0),
        link_bytes=np.sum([part.link_bytes for part in parts], axis=0),
        binding=np.concatenate([part.binding for part in parts]),
        node_bytes=np.sum([part.node_bytes for part in parts], axis=0),
        outside_s=np.sum([part.outside_s for part in parts], axis=0),
    )
