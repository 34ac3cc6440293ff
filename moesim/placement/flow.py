"""Flow: what one batch of tokens does to every rank, node and slot, in all layers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Final, NoReturn

import numpy as np

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import InputError

WANT: Final = ("slot_tokens", "pairs", "rank_copies", "node_copies", "forward")
"""Names of the arrays that a Flow can hold, for the ``want`` argument of ``dispatch``."""


class NotComputed(InputError, AttributeError):
    """An array of a Flow that was not asked for is used; ``getattr(flow, name, None)`` gives None."""


@dataclass(frozen=True, eq=False, repr=False)
class Flow(Sealed):
    """Counts of one batch, all layers on the leading axis.

    Counts are whole numbers under policies that pick one replica and expected values under those that split.
    An array given as None was not asked for: using it raises :class:`NotComputed`.

    Parameters
    ----------
    tokens
        int64 [ranks]: tokens of each home rank.
    node
        int32 [ranks]: node (NVLink domain) of each rank.
    slot_tokens
        [layers, ranks, slots]: tokens that each slot computes.
    pairs
        [layers, ranks, ranks]: (token, expert) pairs from home rank to expert rank, nothing merged.
    rank_copies
        [layers, ranks, ranks]: tokens from home rank to expert rank, each once per expert rank.
    node_copies
        [layers, ranks, nodes]: tokens from home rank to node, each once per node, its own node counted too.
    forward_local
        [layers, ranks, largest node]: tokens from landing rank to expert rank inside one node; the last axis is the
        position of the expert rank in its node (see ``position``). The landing rank of the own node is the home rank.
    """

    tokens: Array
    node: Array
    slot_tokens: Array
    pairs: Array
    rank_copies: Array
    node_copies: Array
    forward_local: Array

    def __post_init__(self) -> None:
        tokens = seal(self, "tokens", self.tokens, np.int64, ("ranks",))
        ranks = len(tokens)
        node = seal(self, "node", self.node, np.int32, ("ranks",), {"ranks": ranks})
        sizes = {"ranks": ranks, "expert ranks": ranks, "largest node": int(np.bincount(node).max())}
        axes = {
            "slot_tokens": ("layers", "ranks", "slots"),
            "pairs": ("layers", "ranks", "expert ranks"),
            "rank_copies": ("layers", "ranks", "expert ranks"),
            "node_copies": ("layers", "ranks", "nodes"),
            "forward_local": ("layers", "ranks", "largest node"),
        }
        for name, names in axes.items():
            value = self.__dict__[name]
            if value is None:
                object.__delattr__(self, name)
            else:
                sizes.setdefault("layers", np.shape(value)[0] if np.ndim(value) else 0)
                seal(self, name, value, np.float64, names, sizes)

    def __getattr__(self, name: str) -> NoReturn:
        if name in {field.name for field in fields(type(self))}:
            asked = "forward" if name == "forward_local" else name
            raise NotComputed(f"this Flow holds no {name}: ask for it with dispatch(..., want=(..., {asked!r}))")
        raise AttributeError(name)

    @property
    def layers(self) -> int:
        """Number of layers on the leading axis."""
        held = [self.__dict__[f.name] for f in fields(self)[2:] if f.name in self.__dict__]
        return len(held[0]) if held else 0

    @property
    def ranks(self) -> int:
        """Number of ranks, R."""
        return len(self.tokens)

    @cached_property
    def position(self) -> Array:
        """int32 [ranks]: position of each rank among the ranks of its node, ascending."""
        return positions(self.node)

    @cached_property
    def forward(self) -> Array:
        """[layers, ranks, ranks]: tokens from landing rank to expert rank inside one node.

        A token is counted once per expert rank; the diagonal needs no transfer. Made from ``forward_local``, which
        is smaller by the number of nodes.
        """
        compact = self.forward_local
        layers, ranks, _ = compact.shape
        dense = np.zeros((layers, ranks, ranks))
        source, target = np.nonzero(self.node[:, None] == self.node[None, :])
        dense[:, source, target] = compact[:, source, self.position[target]]
        dense.flags.writeable = False
        return dense

    def __repr__(self) -> str:
        held = [f.name for f in fields(self)[2:] if f.name in self.__dict__]
        return f"Flow({self.layers} layers, {self.ranks} ranks, {int(self.tokens.sum())} tokens: {', '.join(held)})"


def positions(node: Array) -> Array:
    """Return int32 [ranks]: the position of each rank among the ranks of its node, ascending."""
    order = np.argsort(node, kind="stable")
    sizes = np.bincount(node)
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    result = np.empty(len(node), dtype=np.int32)
    result[order] = np.arange(len(node)) - first
    result.flags.writeable = False
    return result
