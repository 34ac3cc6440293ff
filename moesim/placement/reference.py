"""The same Flow in plain numpy, written for reading: what the compiled kernels are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.base.arrays import Array
from moesim.placement.checks import check, layer_batch, policy_picks, policy_shares, policy_table
from moesim.placement.dispatch import make_flow
from moesim.placement.flow import WANT, Flow, positions
from moesim.placement.placement import Placement
from moesim.placement.policies import LayerBatch, Policy, SharePolicy, TokenPolicy


def dispatch_reference(
    routes: Array,
    home: Array,
    placement: Placement,
    cluster_node: Array,
    landing: Array,
    *,
    policy: str | Policy = "nearest",
    table: Array | None = None,
    layers: slice | Sequence[int] | int = slice(None),
    want: Sequence[str] = WANT,
    seed: int = 0,
) -> Flow:
    """Return what :func:`moesim.placement.dispatch.dispatch` returns, whole numbers identical."""
    batch = check(routes, home, placement, cluster_node, landing, policy, table, layers, want, seed)
    ranks = placement.ranks
    order = np.argsort(batch.home, kind="stable")
    home = batch.home[order]
    group_ptr = np.concatenate([[0], np.cumsum(np.bincount(home, minlength=ranks))])
    table = policy_table(batch)
    results = []
    for index, layer in enumerate(batch.layers):
        picks = np.ascontiguousarray(batch.routes[order, layer], dtype=np.int16)
        view = layer_batch(batch, layer, picks, group_ptr)
        if table is not None:
            slots = np.where(picks >= 0, table[index][home[:, None], picks], -1)
            results.append(_count(view, home, slots, batch.landing))
        elif isinstance(batch.policy, SharePolicy):
            results.append(_expect(view, home, *policy_shares(batch.policy, view), batch.landing))
        elif isinstance(batch.policy, TokenPolicy):
            results.append(_count(view, home, policy_picks(batch.policy, view), batch.landing))
    return make_flow({name: np.stack([r[name] for r in results]) for name in WANT}, batch, group_ptr)


def _count(view: LayerBatch, home: Array, slots: Array, landing: Array) -> dict[str, Array]:
    ranks, nodes, per_rank = len(view.node), landing.shape[1], view.placement.slots_per_rank
    token, pick = np.nonzero(slots >= 0)
    slot = slots[token, pick]
    rank = slot // per_rank
    # a (token, rank) or (token, node) pair counts once however many picks share it
    rank_token, copy_rank = np.divmod(np.unique(token * ranks + rank), ranks)
    node_token, copy_node = np.divmod(np.unique(token * nodes + view.node[rank]), nodes)
    pairs, copies = np.zeros((ranks, ranks)), np.zeros((ranks, ranks))
    node_copies = np.zeros((ranks, nodes))
    np.add.at(pairs, (home[token], rank), 1)
    np.add.at(copies, (home[rank_token], copy_rank), 1)
    np.add.at(node_copies, (home[node_token], copy_node), 1)
    slot_tokens = np.bincount(slot, minlength=ranks * per_rank).astype(np.float64)
    return _results(view, slot_tokens, pairs, copies, node_copies, landing)


def _expect(view: LayerBatch, home: Array, share: Array, source: Array, landing: Array) -> dict[str, Array]:
    ranks, nodes, per_rank = len(view.node), landing.shape[1], view.placement.slots_per_rank
    expert = np.repeat(np.arange(view.placement.num_experts), np.diff(view.indptr))
    slot_tokens = np.zeros(ranks * per_rank)
    pairs, copies = np.zeros((ranks, ranks)), np.zeros((ranks, ranks))
    node_copies = np.zeros((ranks, nodes))
    for rank in range(ranks):
        picks = view.routes[home == rank]
        # the last row stands for "no pick" and reaches nobody
        by_slot = np.zeros((view.placement.num_experts + 1, ranks * per_rank))
        by_slot[expert, view.slot] = share[source[rank]]
        by_rank = by_slot.reshape(len(by_slot), ranks, per_rank).sum(axis=2)
        by_node = np.zeros((len(by_slot), nodes))
        np.add.at(by_node.T, view.node, by_rank.T)
        slot_tokens += by_slot[picks].sum(axis=(0, 1))
        pairs[rank] = by_rank[picks].sum(axis=(0, 1))
        copies[rank] = (1 - np.prod(1 - by_rank[picks], axis=1)).sum(axis=0)
        node_copies[rank] = (1 - np.prod(1 - by_node[picks], axis=1)).sum(axis=0)
    return _results(view, slot_tokens, pairs, copies, node_copies, landing)


def _results(
    view: LayerBatch, slot_tokens: Array, pairs: Array, copies: Array, node_copies: Array, landing: Array
) -> dict[str, Array]:
    forward = np.zeros((len(view.node), np.bincount(view.node).max()))
    rank, target = np.nonzero(copies)
    np.add.at(forward, (landing[rank, view.node[target]], positions(view.node)[target]), copies[rank, target])
    return {
        "slot_tokens": slot_tokens,
        "pairs": pairs,
        "rank_copies": copies,
        "node_copies": node_copies,
        "forward": forward,
    }
