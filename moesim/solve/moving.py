"""What it takes to get from the placement that runs to another: bytes, seconds, and when that has paid off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import Infeasible
from moesim.cluster import Cluster
from moesim.placement.rounds import STORAGE, Schedule

STORAGE_BANDWIDTH: Final = 25e9
"""Bytes/s at which a rank reads an expert that no rank holds, from host memory over PCIe 5; assumed."""


@dataclass(frozen=True, eq=False)
class Move(Sealed):
    """What a migration costs.

    Parameters
    ----------
    layer_moves, layer_s
        Experts received, and seconds, of each layer; int64 and float64 [layers].
    bytes, node_bytes
        Bytes copied between ranks, and those of them that leave their node.
    stored
        Experts that come from storage, since no rank holds them.
    rounds, commits
        Rounds one after the other, and times at which received experts take their slots.
    staging_bytes
        Bytes that a rank needs beside its slots, at most.
    """

    layer_moves: Array
    layer_s: Array
    bytes: float
    node_bytes: float
    stored: int
    rounds: int
    commits: int
    staging_bytes: float

    def __post_init__(self) -> None:
        layers = len(seal(self, "layer_moves", self.layer_moves, np.int64, ("layers",)))
        seal(self, "layer_s", self.layer_s, np.float64, ("layers",), {"layers": layers})

    @property
    def moves(self) -> int:
        """Experts received in all."""
        return int(self.layer_moves.sum())

    @property
    def seconds(self) -> float:
        """Seconds in all, rounds one after the other and nothing else on the links."""
        return float(self.layer_s.sum())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with stable keys."""
        return {
            "moves": self.moves,
            "most_moves_of_a_layer": int(self.layer_moves.max(initial=0)),
            "move_bytes": self.bytes,
            "node_bytes": self.node_bytes,
            "from_storage": self.stored,
            "rounds": self.rounds,
            "commits": self.commits,
            "staging_bytes": self.staging_bytes,
            "move_s": self.seconds,
        }


def price(plan: Schedule, cluster: Cluster, expert_bytes: float, spare: Array | None = None) -> Move:
    """Return what a migration costs on a cluster where it has the links, or a part of them, for itself.

    A round takes the time of its busiest link (paths as of any other traffic: NVLink inside a node, network cards and
    switches between nodes) and the longest latency in it; rounds follow one another.

    Parameters
    ----------
    expert_bytes
        Bytes of an expert, ``ModelSpec.expert_bytes``.
    spare
        Part of each link's bandwidth that copies get, above 0, float64 [links]; default: all.
    """
    bandwidth = np.asarray(cluster.link_bandwidth) * (1.0 if spare is None else spare)
    layer_s = np.zeros(plan.layers)
    told = plan.source != STORAGE
    latency = cluster.paths.latency_matrix()
    rounds = 0
    for part in plan.every_round():
        rounds += 1
        between = np.flatnonzero(told[part]) + part.start
        source, target = plan.source[between], plan.target[between]
        seconds = 0.0
        if len(between):
            traffic = np.zeros((cluster.ranks, cluster.ranks))
            traffic[source, target] = expert_bytes
            busiest = (cluster.paths.link_bytes(traffic) / bandwidth).max()
            seconds = float(busiest + latency[source, target].max())
        if len(between) < part.stop - part.start:
            seconds = max(seconds, expert_bytes / STORAGE_BANDWIDTH)
        layer_s[plan.layer[part.start]] += seconds
    moves = plan.moves
    return Move(
        layer_moves=plan.per_layer,
        layer_s=layer_s,
        bytes=moves.bytes(expert_bytes),
        node_bytes=moves.between_nodes(cluster.node) * expert_bytes,
        stored=int((~told).sum()),
        rounds=rounds,
        commits=len(np.unique(plan.commit)),
        staging_bytes=plan.staging * expert_bytes,
    )


def staging_room(
    cluster: Cluster, slots: int | Array, layers: int, expert_bytes: float, other_bytes: float, reserve: float
) -> int:
    """Return how many experts a rank can hold beside its slots: what weights and reserve leave of its memory.

    ``slots`` are those of a layer, of all ranks or of each [ranks].

    Raises
    ------
    Infeasible
        If a rank has no room for a single one.
    """
    left = cluster.memory_bytes * (1 - reserve) - other_bytes - layers * np.asarray(slots) * expert_bytes
    room = int(left.min() // expert_bytes)
    if room < 1:
        raise Infeasible(
            f"migration: rank {int(left.argmin())} of {cluster.name} has {left.min() / 1e9:.2f} GB left beside weights "
            f"and reserve, an expert takes {expert_bytes / 1e9:.3f} GB; nothing can be received: use fewer slots"
        )
    return room


def break_even_s(move_s: float, stay_s: float, step_s: float, model_step_s: float) -> float | None:
    """Return the seconds of serving after which a move has paid off, None where it never does.

    Parameters
    ----------
    move_s
        Seconds of the move, in which nothing is served (the upper bound of what it costs).
    stay_s, step_s
        Seconds of a step before and after, of the layers that move.
    model_step_s
        Seconds of a step of the whole model after it: what is saved is saved once in a step of all.
    """
    if move_s <= 0 and step_s <= stay_s:
        return 0.0
    return move_s * model_step_s / (stay_s - step_s) if stay_s > step_s else None
