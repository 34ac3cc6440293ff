"""What a step of the engine takes: the protocol, a constant, and the closed form of the simulator.

The closed form prices a step from the tokens that are in it, under the placement that runs. Two things make an hour
of traffic a matter of a minute: a step is priced on some layers, in turn, which stand for all; and steps of about the
same make-up (tokens of prefill and decode, in all and on the fullest rank) share a few prices, which are renewed ever
more rarely. Attention is always that of the step itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.costs.outside import outside_s
from moesim.placement import Placement, dispatch, nearest_table
from moesim.simulate.closed import run_closed_form
from moesim.simulate.schedules import get_schedule
from moesim.simulate.serving.tokens import TokenSource
from moesim.simulate.work import Work
from moesim.spec import ModelSpec

_SAMPLES: Final = 6
"""Prices that steps of one make-up share."""
PRICED_LAYERS: Final = 8
"""Layers on which a step is priced."""
_FINE: Final = 12
"""Bins for a doubling of tokens: steps that differ by 6 % share prices."""


@dataclass(frozen=True, eq=False)
class StepBatch:
    """The tokens of one step, as runs of consecutive tokens of a request.

    Parameters
    ----------
    request, home
        int64 [runs]: request, and its rank.
    start, count
        int64 [runs]: first token and number of tokens; an answer counts from its own first token.
    before
        int64 [runs]: tokens of the request that the first of the run attends to, itself not counted.
    answer
        bool [runs]: decode, or a chunk of a prompt.
    """

    request: Array
    home: Array
    start: Array
    count: Array
    before: Array
    answer: Array


class StepModel(Protocol):
    """Seconds of a step, and the seconds that each rank computes in it."""

    def __call__(self, batch: StepBatch) -> tuple[float, Array]:
        """Return seconds, and float64 [ranks]."""
        ...


class ConstantStep:
    """Every step takes the same time: for queueing laws, and for measured step times.

    Parameters
    ----------
    seconds, ranks
        Of a step; of the group.
    """

    def __init__(self, seconds: float, ranks: int = 1) -> None:
        self.seconds, self.ranks = seconds, ranks

    def __call__(self, batch: StepBatch) -> tuple[float, Array]:
        """Return the constant; ranks with tokens are busy."""
        busy = np.zeros(self.ranks)
        busy[batch.home] = self.seconds
        return self.seconds, busy


class ClosedForm:
    """The simulator's closed form as step model.

    Parameters
    ----------
    source
        Tokens of the served requests.
    cluster, placement, policy, costs
        What runs.
    layers
        MoE layers of the served model, of which those of the trace are a sample; None: as many as the trace has.
    model
        The served model, whose dense layers, embeddings and head are priced; None: nothing outside the MoE layers.
    overhead_s
        Seconds that every step takes beside (host, sampling).
    exact
        Price every step anew, on all layers.
    rank_of
        Rank of this cluster for every rank of the pool, -1 for those that are gone; None: the same numbers.
    seed
        For policies that draw.
    """

    def __init__(
        self,
        source: TokenSource,
        cluster: Cluster,
        placement: Placement,
        policy: str,
        costs: Costs,
        *,
        layers: int | None = None,
        model: ModelSpec | None = None,
        overhead_s: float = 0.0,
        exact: bool = False,
        rank_of: Array | None = None,
        seed: int = 0,
    ) -> None:
        recorded = placement.layers
        if source.trace.layers != recorded or placement.ranks != cluster.ranks:
            raise InputError(
                f"serving: the placement is for (layers, ranks) {(recorded, placement.ranks)}, the trace and cluster "
                f"{cluster.name} have {(source.trace.layers, cluster.ranks)}; plan for these"
            )
        self.source, self.cluster, self.costs, self.policy = source, cluster, costs, policy
        self.layers = recorded if layers is None else layers
        self.model = model
        self.overhead_s, self.exact, self.seed, self.rank_of = overhead_s, exact, seed, rank_of
        self.pool_ranks = cluster.ranks if rank_of is None else len(rank_of)
        self.schedule = get_schedule("shared-overlap" if costs.shared_expert == "overlap" else "sequential")
        parts = 1 if exact else -(-recorded // PRICED_LAYERS)
        # interleaved, so that every part has early and late layers
        groups = [np.arange(recorded)[part::parts] for part in range(parts)]
        routes = source.trace.routes
        assert routes is not None  # checked by TokenSource
        self.parts = []
        for group in groups:
            piece = Placement(placement.experts[group], placement.num_experts)
            table = nearest_table(piece, cluster.node) if policy == "nearest" else None
            self.parts.append((np.ascontiguousarray(routes[:, group]), piece, table))
        self.prices: dict[tuple[int, ...], list[tuple[float, Array]]] = {}
        self.hits: dict[tuple[int, ...], int] = {}
        self.priced = 0

    def __call__(self, batch: StepBatch) -> tuple[float, Array]:
        """Return the seconds of a step and the compute seconds of every rank of the pool."""
        R = self.cluster.ranks
        home = batch.home if self.rank_of is None else self.rank_of[batch.home]
        answer = batch.answer
        said = np.bincount(home[answer], minlength=R)
        asked = np.bincount(home[~answer], weights=batch.count[~answer], minlength=R)
        attention = self._attention(batch, home, said, asked)
        slowest = float(attention.max())
        moe_s, experts = self._moe(batch, home, said, asked, attention, slowest)
        outside = self._outside(home, said + asked, attention)
        seconds = self.layers * (moe_s + slowest) + float(outside.max()) + self.overhead_s
        busy = self.layers * (attention * ((said + asked) > 0) + experts) + outside
        if self.rank_of is None:
            return seconds, busy
        return seconds, np.where(self.rank_of >= 0, busy[self.rank_of], 0.0)

    def _attention(self, batch: StepBatch, home: Array, said: Array, asked: Array) -> Array:
        """Return the seconds of attention and gate in one layer [R], of a batch that may mix both phases."""
        R, answer = self.cluster.ranks, batch.answer
        # a token attends to those before it and to itself
        context = batch.count * (batch.before + 1.0) + batch.count * (batch.count - 1.0) / 2
        read = np.bincount(home[answer], weights=context[answer], minlength=R)
        if not asked.any():
            return self.costs.attention_s(said, read, True)
        chunks = np.bincount(home[~answer], weights=context[~answer], minlength=R)
        together = self.costs.attention_s(said + asked, chunks, False)
        if not said.any():
            return together
        # weights are read once for both; the answers' reads of the cache come on top
        alone = self.costs.attention_s(np.stack([said, said]), np.stack([read, np.zeros(R)]), True)
        return np.asarray(together + alone[0] - alone[1])

    def _outside(self, home: Array, tokens: Array, attention: Array) -> Array:
        """Return the seconds of each rank outside the MoE layers [R]; every chunk of a prompt may end it."""
        R = self.cluster.ranks
        if self.model is None:
            return np.zeros(R)
        return outside_s(attention, tokens, np.bincount(home, minlength=R), self.cluster, self.model)

    def _moe(
        self, batch: StepBatch, home: Array, said: Array, asked: Array, attention: Array, slowest: float
    ) -> tuple[float, Array]:
        """Return the seconds of a layer beyond attention, and of each rank's experts [R]."""
        if self.exact:
            return self._price(batch, home, attention, slowest)
        key = tuple(_bin(value) for value in (said.sum(), said.max(), asked.sum(), asked.max()))
        known = self.prices.setdefault(key, [])
        hit = self.hits[key] = self.hits.get(key, 0) + 1
        if len(known) < _SAMPLES:
            known.append(self._price(batch, home, attention, slowest))
            return known[-1]
        if hit & (hit - 1) == 0:
            # the traffic may have moved on: one price is renewed at every doubling
            known[hit.bit_length() % _SAMPLES] = self._price(batch, home, attention, slowest)
        return known[hit % _SAMPLES]

    def _price(self, batch: StepBatch, home: Array, attention: Array, slowest: float) -> tuple[float, Array]:
        routes, placement, table = self.parts[self.priced % len(self.parts)]
        self.priced += 1
        rows = self.source.rows(batch.request, batch.start, batch.count, batch.answer)
        homes = np.repeat(home, batch.count).astype(np.int32)
        cluster, costs = self.cluster, self.costs
        flow = dispatch(
            routes[rows], homes, placement, cluster.node, cluster.landing, policy=self.policy, table=table,
            seed=self.seed + self.priced,
        )  # fmt: skip
        L, R = placement.layers, cluster.ranks
        ways = (costs.dispatch(flow), costs.combine(flow))

        def both(name: str) -> Array:
            return np.stack([getattr(way, name) for way in ways])[None]

        experts = costs.experts_s(flow.slot_tokens)
        shared = costs.shared_s(np.bincount(homes, minlength=R).astype(np.float64))
        work = Work(
            attention_s=np.broadcast_to(attention, (1, L, R)),
            shared_s=np.broadcast_to(shared, (1, L, R)),
            experts_s=experts[None],
            arrive_s=both("arrive_s"),
            own_s=both("own_s") + both("drain_s")[..., None],
            word_s=both("floor_s"),
            sends=both("senders"),
            everyone=(ways[0].everyone, ways[1].everyone),
        )
        step_s = run_closed_form(work, self.schedule).step_s
        return max(step_s / L - slowest, 0.0), experts.mean(axis=0) + shared


def _bin(value: float) -> int:
    """Return whole numbers as they are where they are small, and bins that grow with them where they are not."""
    return int(value) if value <= _FINE else _FINE + int(np.log2(value / _FINE) * _FINE)
