"""Dispatch: from the routes of a batch to a Flow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.placement import kernels
from moesim.placement.checks import Batch, check, layer_batch, policy_picks, policy_shares, policy_table
from moesim.placement.flow import WANT, Flow, positions
from moesim.placement.placement import Placement
from moesim.placement.policies import Policy, SharePolicy, TokenPolicy

_CHUNK: Final = 4
"""Layers gathered at once: with eight picks of two bytes, four layers of a token share a cache line."""


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
    order, group_ptr = kernels.group(batch.home, ranks)
    places = (np.repeat(np.arange(ranks, dtype=np.int32), placement.slots_per_rank), node, position, batch.landing)
    table = policy_table(batch)
    for index, grouped in enumerate(_grouped(batch, order)):
        results = [out[name][index] for name in WANT]
        if table is not None:
            kernels.flow_table(grouped, group_ptr, table[index], *places, *results)
            continue
        view = layer_batch(batch, batch.layers[index], grouped, group_ptr)
        if isinstance(batch.policy, SharePolicy):
            share, source = policy_shares(batch.policy, view)
            kernels.flow_shares(grouped, group_ptr, view.indptr, view.slot, share, source, *places, *results)
        elif isinstance(batch.policy, TokenPolicy):
            kernels.flow_slots(policy_picks(batch.policy, view), group_ptr, *places, *results)
    return make_flow(out, batch, group_ptr)


def _grouped(batch: Batch, order: Array) -> Iterator[Array]:
    """Yield int16 [tokens, picks] of each chosen layer in the given order of tokens."""
    tokens, _, picks = batch.routes.shape
    # whole words are copied, as long as a token's picks fill them
    word: Any = next(dtype for dtype in (np.int64, np.int32, np.int16) if 2 * picks % np.dtype(dtype).itemsize == 0)
    for first in range(0, len(batch.layers), _CHUNK):
        numbers = np.array(batch.layers[first : first + _CHUNK])
        buffer = np.empty((len(numbers), tokens, picks), dtype=np.int16)
        kernels.gather(batch.routes.view(word), order, numbers, buffer.view(word))
        yield from buffer


def make_flow(out: dict[str, Array], batch: Batch, group_ptr: Array) -> Flow:
    """Return the Flow of finished arrays, slots split by rank and those not wanted left out."""
    for array in out.values():
        array.flags.writeable = False  # nobody else holds them: the Flow need not copy
    held: dict[str, Any] = {name: out[name] if name in batch.want else None for name in WANT}
    if held["slot_tokens"] is not None:
        held["slot_tokens"] = held["slot_tokens"].reshape(len(batch.layers), batch.placement.ranks, -1)
    held["forward_local"] = held.pop("forward")
    return Flow(tokens=np.diff(group_ptr), node=batch.node, **held)
