"""Token loads of measured rows: seeded uniform routing, and the power laws of NVIDIA's collector.

The collector (ai-dynamo/aiconfigurator, ``collector/helper.py``) draws expert popularity from a truncated power law,
rounds it to whole tokens and lets the busiest rank be rank 0. It prints neither seed nor loads, so rows are compared
with seeded draws of the same law, written anew here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from moesim.base.arrays import Array
from moesim.cluster import Cluster
from moesim.placement import Placement, dispatch
from moesim.solve.eplb import balanced_packing, replicate_experts
from moesim.spec import ModelSpec

SAMPLED = 512
"""Tokens per rank that are routed one by one; more of them are the same again."""


@dataclass(frozen=True, eq=False)
class Counts:
    """A flow scaled to more tokens than were drawn; arrays as in :class:`moesim.placement.Flow`."""

    slot_tokens: Array
    pairs: Array
    rank_copies: Array
    node_copies: Array
    forward: Array
    tokens: Array


def strided(experts: int, top_k: int, tokens: int) -> Array:
    """Return balanced routes [tokens, top_k] as NVIDIA's collector deals them: a token's picks a stride apart."""
    stride = -(-experts // top_k)
    first = np.arange(tokens) if tokens >= stride else np.arange(tokens) * stride // tokens
    return ((first[:, None] + stride * np.arange(top_k)) % experts).astype(np.int16)


@lru_cache(maxsize=256)
def balanced(cluster: Cluster, experts: int, top_k: int, tokens: int) -> Counts:
    """Return the flow of one layer where every rank's tokens are routed by :func:`strided`."""
    drawn = min(tokens, max(-(-experts // top_k), SAMPLED))
    routes = np.tile(strided(experts, top_k, drawn), (cluster.ranks, 1))
    home = np.repeat(np.arange(cluster.ranks, dtype=np.int32), drawn)
    return _counts(cluster, experts, routes, home, tokens / drawn)


@lru_cache(maxsize=256)
def uniform(cluster: Cluster, experts: int, top_k: int, tokens: int, groups: int = 0, seed: int = 0) -> Counts:
    """Return the flow of one layer with uniform random routing onto contiguous experts.

    Parameters
    ----------
    tokens
        Tokens per rank.
    groups
        Nodes that a token may visit, 0 for all (group-limited routing).
    """
    rng = np.random.default_rng(seed)
    limit = max(32, min(SAMPLED, 16_384 // cluster.ranks))
    drawn = min(tokens, limit)
    score = rng.random((drawn * cluster.ranks, experts), dtype=np.float32)
    if 0 < groups < cluster.nodes:
        by_node = score.reshape(len(score), cluster.nodes, -1)
        best = np.argsort(-by_node.max(axis=2), axis=1)[:, :groups]
        keep = np.zeros((len(score), cluster.nodes, 1), bool)
        np.put_along_axis(keep[:, :, 0], best, True, axis=1)
        score = np.where(keep, by_node, -1.0).reshape(score.shape)
    routes = np.argpartition(-score, top_k - 1, axis=1)[:, :top_k].astype(np.int16)
    home = np.arange(len(routes), dtype=np.int32) % cluster.ranks
    return _counts(cluster, experts, routes, home, tokens / drawn)


def _counts(cluster: Cluster, experts: int, routes: Array, home: Array, part: float) -> Counts:
    """Dispatch routes [n, top_k] to contiguous experts; counts times ``part``."""
    slots = -(-experts // cluster.ranks)
    held = np.full(cluster.ranks * slots, -1, np.int32)
    held[:experts] = np.arange(experts)
    placement = Placement(held.reshape(1, cluster.ranks, slots), experts)
    flow = dispatch(routes[:, None], home, placement, cluster.node, cluster.landing)
    return Counts(
        flow.slot_tokens * part,
        flow.pairs * part,
        flow.rank_copies * part,
        flow.node_copies * part,
        flow.forward * part,
        flow.tokens * part,
    )


def power_law(
    tokens: int, experts: int, top_k: int, exponent: float, rng: np.random.Generator, fill_small: bool = False
) -> Array:
    """Return tokens per expert [experts], whole numbers that sum to tokens x top_k, none above ``tokens``.

    Parameters
    ----------
    fill_small
        Who takes what rounding left over: the smallest experts, as in the later collector, or the largest.
    """
    low, high = (1.0, tokens * 0.8) if tokens * top_k > experts else (0.01, 2.0)
    power = 1.0 - exponent
    drawn = ((high**power - low**power) * rng.random(experts) + low**power) ** (1.0 / power)
    target = tokens * top_k
    counts = np.round(drawn / drawn.sum() * target).astype(np.int64)
    excess = int(np.maximum(counts - tokens, 0).sum())
    counts = np.minimum(counts, tokens)
    order = np.argsort(-(counts if fill_small else drawn), kind="stable")
    _spread(counts, excess, tokens, order[::-1])
    rest = target - int(counts.sum())
    _spread(counts, rest, tokens, order[::-1] if fill_small or rest < 0 else order)
    return np.asarray(counts)


def _spread(counts: Array, rest: int, most: int, order: Array) -> None:
    """Add (or take) ``rest`` tokens one by one in an order of experts, in place."""
    while rest != 0:
        open_ = order[counts[order] < most] if rest > 0 else order[counts[order] > 0]
        step = open_[: abs(rest)]
        counts[step] += 1 if rest > 0 else -1
        rest -= len(step) if rest > 0 else -len(step)


def busiest_rank(counts: Array, ranks: int) -> Array:
    """Return the loads of the experts of the busiest rank, experts placed in order."""
    by_rank = counts.reshape(ranks, -1)
    return np.asarray(by_rank[by_rank.sum(axis=1).argmax()], np.float64)


def balanced_rank(counts: Array, ranks: int, slots: int) -> Array:
    """Return the loads of the slots of the busiest rank after EPLB: replicate, then pack heaviest first."""
    weight = counts[None].astype(np.float32)
    expert, copies = replicate_experts(weight, slots)
    share = (weight / copies)[0][expert[0]]
    pack, _ = balanced_packing(share[None], ranks)
    loads = np.bincount(pack[0], share, minlength=ranks)
    mine = pack[0] == loads.argmax()
    # whole tokens: what is left after rounding down goes to the largest fractions, the busiest rank first
    whole = np.floor(share)
    order = np.lexsort((~mine, whole - share))
    whole[order[: int(counts.sum() - whole.sum())]] += 1
    return np.asarray(whole[mine], np.float64)


def mlp_spec(hidden: int, intermediate: int, experts: int, top_k: int, weight: float, token: float) -> ModelSpec:
    """Return a one-layer model of these dimensions; bytes per element of weights and dispatched tokens."""
    return ModelSpec(
        "measured", (0,), 1, experts=experts, top_k=top_k, hidden=hidden, intermediate=intermediate,
        weight_bytes=weight, dispatch_bytes=token,
    )  # fmt: skip
