"""Dispatch: from the routes of a batch to a Flow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError, UnknownName
from moesim.placement import kernels
from moesim.placement.flow import WANT, Flow, positions
from moesim.placement.placement import Placement
from moesim.placement.policies import (
    POLICIES,
    LayerBatch,
    Policy,
    SharePolicy,
    TablePolicy,
    chosen_layers,
    physical_holders,
)

_CHUNK: Final = 4
"""Layers gathered at once: with eight picks of two bytes, four layers of a token share a cache line."""


@dataclass(frozen=True)
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
    routes = np.asarray(routes)
    home = np.asarray(home)
    if routes.ndim != 3 or routes.shape[1] != placement.layers:
        raise InputError(
            f"dispatch: expected routes [tokens, {placement.layers} layers, picks] for this placement, "
            f"got shape {routes.shape}"
        )
    if home.shape != routes.shape[:1]:
        raise InputError(f"dispatch: expected one home rank for each of {len(routes)} tokens, got shape {home.shape}")
    _within("home", home, 0, ranks)
    _within("routes", routes, -1, experts)
    node = np.asarray(cluster_node)
    if node.shape != (ranks,):
        raise InputError(
            f"dispatch: the placement has {ranks} ranks, but cluster_node has shape {node.shape}; "
            "plan for the ranks of this cluster, or restrict the cluster to the ranks of the placement"
        )
    _within("cluster_node", node, 0, ranks)
    nodes = int(node.max()) + 1
    landing = np.asarray(landing)
    if landing.shape != (ranks, nodes):
        raise InputError(f"dispatch: expected landing [{ranks} ranks, {nodes} nodes], got shape {landing.shape}")
    _within("landing", landing, 0, ranks)
    _check_landing(node, landing)
    for name in want:
        if name not in WANT:
            raise UnknownName("array of a Flow", name, WANT)
    chosen = POLICIES.get(policy) if isinstance(policy, str) else policy
    numbers = chosen_layers(layers, placement.layers)
    if table is not None:
        if not isinstance(chosen, TablePolicy):
            raise InputError(f"dispatch: policy {policy!r} uses no table; leave table out or choose a table policy")
        table = np.asarray(table)
        _check_table(table, placement, numbers)
    return Batch(
        routes, home, placement, node.astype(np.int32), landing.astype(np.int32),
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
    wrong = (node[landing] != np.arange(landing.shape[1])) & np.isin(np.arange(landing.shape[1]), node)
    wrong[ranks, node] |= landing[ranks, node] != ranks
    if wrong.any():
        rank, place = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"dispatch: landing: traffic of rank {rank} for node {place} lands on rank {landing[rank, place]}; "
            "expected a rank of that node, and the rank itself for its own node"
        )


def _check_table(table: Array, placement: Placement, layers: Sequence[int]) -> None:
    shape = (len(layers), placement.ranks, placement.num_experts)
    if table.shape != shape:
        raise InputError(f"dispatch: table: expected shape {shape} [chosen layers, ranks, experts], got {table.shape}")
    _within("table", table, 0, placement.ranks * placement.slots_per_rank)
    for index, layer in enumerate(layers):
        wrong = placement.physical_to_logical[layer][table[index]] != np.arange(placement.num_experts)
        if wrong.any():
            rank, expert = (int(i) for i in np.argwhere(wrong)[0])
            raise InputError(
                f"dispatch: table: layer {layer}, rank {rank} looks for expert {expert} in slot "
                f"{table[index, rank, expert]}, which does not hold it; make the table from this placement"
            )


def dispatch(
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
    """Return where the tokens of one batch go.

    Parameters
    ----------
    routes
        int16 [tokens, layers, picks]: experts a token picked, -1 for none.
    home
        int32 [tokens]: home rank of each token. The order of tokens is their order in the home rank's batch.
    cluster_node
        int32 [ranks]: node (NVLink domain) of each rank.
    landing
        int32 [ranks, nodes]: where traffic of a rank for a node arrives there; the rank itself for its own node.
    policy
        Name of a dispatch policy, or a policy.
    table
        int32 [chosen layers, ranks, experts]: physical slot each source rank uses, instead of the policy's own table.
        Callers with many batches make it once, with :func:`nearest_table` or from their plan.
    layers
        Layers wanted, a slice or numbers; the Flow's leading axis. Large groups of ranks go layer by layer.
    want
        Arrays wanted. ``pairs`` and ``rank_copies`` need ranks x ranks numbers per layer.
    seed
        For policies that draw.

    Raises
    ------
    InputError
        If shapes do not fit each other, an index is out of range, or the table is of another placement.
    """
    batch = check(routes, home, placement, cluster_node, landing, policy, table, layers, want, seed)
    ranks, node = placement.ranks, batch.node
    slots = ranks * placement.slots_per_rank
    position = positions(node)
    shapes = {
        "slot_tokens": (slots,),
        "pairs": (ranks, ranks),
        "rank_copies": (ranks, ranks),
        "node_copies": batch.landing.shape,
        "forward": (ranks, int(position.max()) + 1),
    }
    out = {
        name: np.empty((len(batch.layers), *(shape if name in want else (0,) * len(shape))))
        for name, shape in shapes.items()
    }
    slot_rank = np.repeat(np.arange(ranks, dtype=np.int32), placement.slots_per_rank)
    order, group_ptr = kernels.group(batch.home, ranks)
    chosen = batch.table
    if chosen is None and isinstance(batch.policy, TablePolicy):
        chosen = batch.policy.table(placement, node, batch.layers)
        _check_table(chosen, placement, batch.layers)
    for index, grouped in enumerate(_grouped(batch, order)):
        places = (slot_rank, node, position, batch.landing)
        results = [out[name][index] for name in WANT]
        if chosen is not None:
            kernels.flow_table(grouped, group_ptr, chosen[index], *places, *results)
            continue
        layer = batch.layers[index]
        view = LayerBatch(
            layer, placement, node, *physical_holders(placement, layer), grouped, group_ptr, batch.seed
        )  # fmt: skip
        if isinstance(batch.policy, SharePolicy):
            share, source = batch.policy.shares(view)
            kernels.flow_shares(grouped, group_ptr, view.indptr, view.slot, share, source, *places, *results)
        else:
            kernels.flow_slots(batch.policy.picks(view), group_ptr, *places, *results)
    return make_flow(out, batch, group_ptr)


def _grouped(batch: Batch, order: Array) -> Iterator[Array]:
    """Yield int16 [tokens, picks] of each chosen layer in the given order of tokens."""
    routes = np.ascontiguousarray(batch.routes, dtype=np.int16)
    tokens, _, picks = routes.shape
    # whole words are copied, as long as a token's picks fill them
    word: Any = next(dtype for dtype in (np.int64, np.int32, np.int16) if 2 * picks % np.dtype(dtype).itemsize == 0)
    for first in range(0, len(batch.layers), _CHUNK):
        numbers = np.array(batch.layers[first : first + _CHUNK])
        buffer = np.empty((len(numbers), tokens, picks), dtype=np.int16)
        kernels.gather(routes.view(word), order, numbers, buffer.view(word))
        yield from buffer


def make_flow(out: dict[str, Array], batch: Batch, group_ptr: Array) -> Flow:
    """Return the Flow of finished arrays, slots split by rank and those not wanted left out."""
    held: dict[str, Any] = {name: out[name] if name in batch.want else None for name in WANT}
    if held["slot_tokens"] is not None:
        held["slot_tokens"] = held["slot_tokens"].reshape(len(batch.layers), batch.placement.ranks, -1)
    held["forward_local"] = held.pop("forward")
    return Flow(tokens=np.diff(group_ptr), node=batch.node, **held)
