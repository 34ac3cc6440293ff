"""Dispatch policies: which copy of an expert serves a token.

A policy is one function in one of three wrappers, which say what the function decides:

* :class:`TablePolicy`: one copy per (source rank, expert), known from the placement alone;
* :class:`SharePolicy`: a share per copy; every (token, expert) draws its copy by these shares and the Flow holds
  expected values;
* :class:`TokenPolicy`: a copy for every single pick.

Others register theirs in the entry-point group ``moesim.policies``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.base.registry import Registry
from moesim.placement import choices
from moesim.placement.fewest_active import fewest_active
from moesim.placement.placement import Placement
from moesim.placement.sglang_table import sglang_table
from moesim.placement.shares import batch_shares, node_shares
from moesim.placement.token_aware import token_aware

NEEDS_SUPPORT: Final = "needs engine support"
"""``engine`` of a policy that no released engine runs."""


@dataclass(frozen=True, eq=False)
class LayerBatch:
    """What a policy may look at: one layer of one batch.

    Parameters
    ----------
    layer
        MoE layer of the placement.
    placement, node
        The placement and the node of every rank, int32 [ranks].
    indptr, rank, slot
        Holders of each expert, from ``Placement.holders``, but ``slot`` is the physical slot int32 [holders].
    routes
        int16 [tokens, picks], grouped by home rank, negative = no pick.
    group_ptr
        int64 [ranks + 1]: where the tokens of each home rank stand; their order is that of the home rank's batch.
    seed
        For policies that draw.
    """

    layer: int
    placement: Placement
    node: Array
    indptr: Array
    rank: Array
    slot: Array
    routes: Array
    group_ptr: Array
    seed: int


class Table(Protocol):
    """Return int32 [chosen layers, ranks, experts]: the physical slot each source rank uses."""

    def __call__(self, placement: Placement, node: Array, layers: Sequence[int]) -> Array:
        """Make the table."""
        ...


class Shares(Protocol):
    """Return ``share`` float64 [sources, holders], adding up to 1 per expert, and ``source`` int64 [ranks].

    ``source`` says which row of ``share`` each home rank uses.
    """

    def __call__(self, batch: LayerBatch) -> tuple[Array, Array]:
        """Share out one layer of one batch."""
        ...


class Picks(Protocol):
    """Return int32 [tokens, picks]: the physical slot of every pick of ``batch.routes``, -1 where there is none."""

    def __call__(self, batch: LayerBatch) -> Array:
        """Choose for one layer of one batch."""
        ...


@dataclass(frozen=True)
class TablePolicy:
    """One copy per (source rank, expert). ``engine`` says who runs it today."""

    engine: str
    table: Table


@dataclass(frozen=True)
class SharePolicy:
    """Copies by shares, in expectation. ``engine`` says who runs it today."""

    engine: str
    shares: Shares


@dataclass(frozen=True)
class TokenPolicy:
    """A copy for every pick. ``engine`` says who runs it today."""

    engine: str
    picks: Picks


Policy = TablePolicy | SharePolicy | TokenPolicy

POLICIES: Registry[Policy] = Registry(
    "dispatch policy",
    {
        "uniform": "moesim.placement.policies:UNIFORM",
        "hash": "moesim.placement.policies:HASH",
        "nearest": "moesim.placement.policies:NEAREST",
        "random": "moesim.placement.policies:RANDOM",
        "sglang": "moesim.placement.policies:SGLANG",
        "batch-lp": "moesim.placement.policies:BATCH_LP",
        "shares": "moesim.placement.policies:SHARES",
        "token-aware": "moesim.placement.policies:TOKEN_AWARE",
        "fewest-active": "moesim.placement.policies:FEWEST_ACTIVE",
    },
    "moesim.policies",
)


def chosen_layers(layers: slice | Sequence[int] | int, count: int) -> list[int]:
    """Return the layer numbers that a slice, a sequence or a single number selects.

    Raises
    ------
    InputError
        If one is no whole number in 0..count - 1; a mask is none.
    """
    if isinstance(layers, slice):
        return list(range(count))[layers]
    given: Any = np.atleast_1d(np.asarray(layers))
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise InputError(f"layers: expected whole numbers in 0..{count - 1}, got {given.dtype}")
    numbers: list[int] = given.tolist()
    for number in numbers:
        if not 0 <= number < count:
            raise InputError(f"layers: expected numbers in 0..{count - 1}, got {number}")
    return numbers


def frozen(values: ArrayLike, dtype: DTypeLike) -> Array:
    """Return contiguous, read-only values; kernels are compiled anew for every other kind of array they meet.

    Raises
    ------
    InputError
        If integers are wanted and others are given.
    """
    given = np.asarray(values)
    if np.issubdtype(dtype, np.integer) and not np.issubdtype(given.dtype, np.integer):
        raise InputError(f"dispatch: expected integers, got {given.dtype}")
    array = np.ascontiguousarray(given, dtype=dtype).view()
    array.flags.writeable = False
    return array


def table_of(policy: str, placement: Placement, node: Array) -> Array | None:
    """Return the table of a policy int32 [layers, ranks, experts], None for policies without one.

    Callers with many batches make it once; the answer goes to ``dispatch(..., table=...)``.
    """
    chosen = POLICIES.get(policy)
    if not isinstance(chosen, TablePolicy):
        return None
    return frozen(chosen.table(placement, frozen(node, np.int32), list(range(placement.layers))), np.int32)


def nearest_table(placement: Placement, node: Array, layers: slice | Sequence[int] = slice(None)) -> Array:
    """Return int32 [chosen layers, ranks, experts]: the slot (``rank * C + slot``) that each source rank uses.

    A rank uses its own copy, else one of its node, else any; ranks that have several equally near copies to choose
    from are dealt out over them in turn, so the numbers of ranks per copy differ by one at most.

    SGLang's static dispatch follows the same three steps, but of several copies on the own node all ranks take the
    first, and ties among far copies are shuffled on each rank by itself: its copies are as near, its loads less even.
    """
    node = frozen(node, np.int32)
    numbers = chosen_layers(layers, placement.layers)
    table = np.empty((len(numbers), placement.ranks, placement.num_experts), dtype=np.int32)
    for index, layer in enumerate(numbers):
        indptr, rank, slot = physical_holders(placement, layer)
        choices.nearest_layer(indptr, rank, slot, node, table[index])
    table.flags.writeable = False
    return table


def physical_holders(placement: Placement, layer: int) -> tuple[Array, Array, Array]:
    """Return ``Placement.holders`` of a layer, but with physical slots (``rank * C + slot``)."""
    indptr, rank, slot = placement.holders(layer)
    return indptr, rank, rank * np.int32(placement.slots_per_rank) + slot


def _uniform(batch: LayerBatch) -> tuple[Array, Array]:
    copies = np.diff(batch.indptr)
    share = np.repeat(1.0 / copies, copies)
    return share[None, :], np.zeros(len(batch.node), dtype=np.int64)


def _hash(batch: LayerBatch) -> Array:
    slots = np.empty(batch.routes.shape, dtype=np.int32)
    choices.hash_picks(batch.routes, batch.group_ptr, batch.indptr, batch.slot, slots)
    return slots


def _random(batch: LayerBatch) -> Array:
    slots = np.empty(batch.routes.shape, dtype=np.int32)
    key = np.random.SeedSequence([batch.seed, batch.layer]).generate_state(1, np.uint64)[0]
    choices.random_picks(batch.routes, batch.group_ptr, batch.indptr, batch.slot, key, slots)
    return slots


def _shares(batch: LayerBatch) -> tuple[Array, Array]:
    return node_shares(batch.routes, batch.group_ptr, batch.indptr, batch.rank, batch.node)


def _batch_lp(batch: LayerBatch) -> tuple[Array, Array]:
    return batch_shares(batch.routes, batch.group_ptr, batch.indptr, batch.rank, len(batch.node))


def _fewest_active(batch: LayerBatch) -> Array:
    return fewest_active(batch.routes, batch.indptr, batch.rank, batch.slot, len(batch.node))


def _token_aware(batch: LayerBatch) -> Array:
    return token_aware(batch.routes, batch.group_ptr, batch.indptr, batch.rank, batch.slot, batch.node)


UNIFORM: Final = SharePolicy("expectation of SGLang's dynamic dispatch", _uniform)
"""Equal shares of all copies, expected values."""
HASH: Final = TokenPolicy("vLLM", _hash)
"""Knuth hash of the token's row modulo the number of copies (vLLM 0.33)."""
NEAREST: Final = TablePolicy("SGLang, static dispatch, which spreads less evenly", nearest_table)
"""One copy per source rank: own rank, else own node, else any (SGLang 0.5)."""
SGLANG: Final = TablePolicy("SGLang, static dispatch", sglang_table)
"""The same three steps with SGLang's own ties and shuffles, entry by entry (0.5.23)."""
BATCH_LP: Final = SharePolicy("SGLang, lp dispatch (DeepSeek models), which solves it less exactly", _batch_lp)
"""Shares that balance every batch as well as its copies allow, by a linear program; LPLB's aim, expected values."""
FEWEST_ACTIVE: Final = TokenPolicy(NEEDS_SUPPORT, _fewest_active)
"""One copy per expert and batch, the fewest active on the fullest rank (METRO's aim), for decode."""
RANDOM: Final = TokenPolicy("SGLang, dynamic dispatch", _random)
"""A copy drawn for every pick: what ``uniform`` is the mean of."""
SHARES: Final = SharePolicy(NEEDS_SUPPORT, _shares)
"""Shares of a linear program per source node, expected values; SGLang's ``lp`` does without source nodes."""
TOKEN_AWARE: Final = TokenPolicy(NEEDS_SUPPORT, _token_aware)
"""Fewest nodes, then fewest ranks for each token, under a load cap."""
