"""The arguments of a dispatch and the answers of its policy, checked so that the kernels can trust them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError, UnknownName
from moesim.base.units import count
from moesim.placement import choices
from moesim.placement.flow import WANT
from moesim.placement.placement import Placement
from moesim.placement.policies import (
    POLICIES,
    LayerBatch,
    Policy,
    SharePolicy,
    TablePolicy,
    TokenPolicy,
    chosen_layers,
    frozen,
    physical_holders,
)


@dataclass(frozen=True, eq=False)
class Batch:
    """Checked arguments of a dispatch, the same for the kernels and for the reference."""

    routes: Array
    home: Array
    placement: Placement
    node: Array
    landing: Array
    policy: Policy
    table: Array | None
    layers: list[int]
    want: frozenset[str]
    seed: int


def check(
    routes: Array,
    home: Array,
    placement: Placement,
    cluster_node: Array,
    landing: Array,
    policy: str | Policy,
    table: Array | None,
    layers: slice | Sequence[int] | int,
    want: Sequence[str],
    seed: int,
) -> Batch:
    """Return the arguments of :func:`dispatch` as arrays that the kernels can trust.

    Raises
    ------
    InputError
        If shapes do not fit each other or an index is out of range.
    """
    ranks, experts = placement.ranks, placement.num_experts
    if experts > np.iinfo(np.int16).max:
        raise InputError(
            f"dispatch: routes are int16, so {count(experts, 'expert')} are too many; expected at most 32767"
        )
    routes = np.asarray(routes)
    home = np.asarray(home)
    if routes.ndim != 3 or routes.shape[1] != placement.layers:
        raise InputError(
            f"dispatch: expected routes [tokens, {count(placement.layers, 'layer')}, picks] for this placement, "
            f"got shape {routes.shape}"
        )
    if home.shape != routes.shape[:1]:
        raise InputError(
            f"dispatch: expected one home rank for each of {count(len(routes), 'token')}, got shape {home.shape}"
        )
    _within("home", home, 0, ranks)
    _within("routes", routes, -1, experts)
    node = np.asarray(cluster_node)
    if node.shape != (ranks,):
        raise InputError(
            f"dispatch: the placement has {count(ranks, 'rank')}, but cluster_node has shape {node.shape}; "
            "plan for the ranks of this cluster, or restrict the cluster to the ranks of the placement"
        )
    landing = np.asarray(landing)
    if landing.ndim != 2 or len(landing) != ranks:
        raise InputError(f"dispatch: expected landing [{count(ranks, 'rank')}, nodes], got shape {landing.shape}")
    _within("cluster_node", node, 0, landing.shape[1])
    _check_landing(node, landing)
    for name in want:
        if name not in WANT:
            raise UnknownName("array of a Flow", name, WANT)
    chosen = POLICIES.get(policy) if isinstance(policy, str) else policy
    if not isinstance(chosen, Policy):
        raise InputError(
            f"dispatch: policy {policy!r} is {type(chosen).__name__}; expected a TablePolicy, SharePolicy or "
            "TokenPolicy, which say what its function decides"
        )
    numbers = chosen_layers(layers, placement.layers)
    if table is not None:
        if not isinstance(chosen, TablePolicy):
            raise InputError(f"dispatch: policy {policy!r} uses no table; leave table out or choose a table policy")
        table = frozen(table, np.int32)
        _check_table(table, placement, numbers)
    return Batch(
        frozen(routes, np.int16), frozen(home, np.int32), placement, frozen(node, np.int32), frozen(landing, np.int32),
        chosen, table, numbers, frozenset(want), seed,
    )  # fmt: skip


def _within(name: str, values: Array, low: int, stop: int) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"dispatch: {name}: expected integers, got {values.dtype}")
    if values.size and (values.min() < low or values.max() >= stop):
        found = int(values.min()) if values.min() < low else int(values.max())
        raise InputError(f"dispatch: {name}: expected values in {low}..{stop - 1}, got {found}")


def _check_landing(node: Array, landing: Array) -> None:
    ranks = np.arange(len(node))
    used = np.unique(node)
    _within("landing", landing[:, used], 0, len(node))
    wrong = node[landing[:, used]] != used
    wrong |= (landing[:, used] != ranks[:, None]) & (node[:, None] == used)
    if wrong.any():
        rank, index = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"dispatch: landing: traffic of rank {rank} for node {used[index]} lands on rank "
            f"{landing[rank, used[index]]}; expected a rank of that node, and the rank itself for its own node"
        )


def _check_table(table: Array, placement: Placement, layers: Sequence[int]) -> None:
    shape = (len(layers), placement.ranks, placement.num_experts)
    if table.shape != shape:
        raise InputError(f"dispatch: table: expected shape {shape} [chosen layers, ranks, experts], got {table.shape}")
    for index, layer in enumerate(layers):
        rank, expert = choices.wrong_entry(table[index], placement.physical_to_logical[layer])
        if rank >= 0:
            raise InputError(
                f"dispatch: table: layer {layer}, rank {rank} looks for expert {expert} in slot "
                f"{table[index, rank, expert]}, which does not hold it; make the table from this placement"
            )


def layer_batch(batch: Batch, layer: int, routes: Array, group_ptr: Array) -> LayerBatch:
    """Return what a policy may look at in one layer; ``routes`` [tokens, picks] grouped by home rank."""
    holders = physical_holders(batch.placement, layer)
    return LayerBatch(layer, batch.placement, batch.node, *holders, routes, group_ptr, batch.seed)


def policy_table(batch: Batch) -> Array | None:
    """Return the table of a table policy, given or made, and None for other policies."""
    if batch.table is not None or not isinstance(batch.policy, TablePolicy):
        return batch.table
    table = frozen(batch.policy.table(batch.placement, batch.node, batch.layers), np.int32)
    _check_table(table, batch.placement, batch.layers)
    return table


def policy_shares(policy: SharePolicy, view: LayerBatch) -> tuple[Array, Array]:
    """Return what :class:`SharePolicy` promises.

    Raises
    ------
    InputError
        If shares are negative or do not add up to 1 per expert, or a rank has no row.
    """
    share, source = (np.asarray(array) for array in policy.shares(view))
    if share.ndim != 2 or share.shape[1] != len(view.slot) or source.shape != view.node.shape:
        raise InputError(
            f"dispatch: shares: expected share [sources, {len(view.slot)} holders] and "
            f"source [{count(len(view.node), 'rank')}], got shapes {share.shape} and {source.shape}"
        )
    _within("source", source, 0, len(share))
    sums = np.add.reduceat(share, view.indptr[:-1], axis=1)
    wrong = ~(np.abs(sums - 1) < 1e-9) | ~(np.minimum.reduceat(share, view.indptr[:-1], axis=1) >= 0)
    if wrong.any():
        row, expert = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"dispatch: shares: layer {view.layer}, source row {row}: the shares of the copies of expert {expert} "
            f"add up to {sums[row, expert]:g}; expected 1, none of them negative"
        )
    return frozen(share, np.float64), frozen(source, np.int64)


def policy_picks(policy: TokenPolicy, view: LayerBatch) -> Array:
    """Return what :class:`TokenPolicy` promises.

    Raises
    ------
    InputError
        If a slot does not hold the expert picked.
    """
    slots = frozen(policy.picks(view), np.int32)
    if slots.shape != view.routes.shape:
        raise InputError(f"dispatch: picks: expected shape {view.routes.shape} [tokens, picks], got {slots.shape}")
    token = choices.wrong_pick(slots, view.routes, view.placement.physical_to_logical[view.layer])
    if token >= 0:
        raise InputError(
            f"dispatch: picks: layer {view.layer}, token {token} (in order of home ranks) picks experts "
            f"{view.routes[token].tolist()}, but the policy sends them to slots {slots[token].tolist()}, "
            "which do not hold them; expected a slot of each expert picked, and -1 for no pick"
        )
    return slots
