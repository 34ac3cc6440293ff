"""A cluster as cables between named vertices: what shapes and importers produce and the compiler reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import InputError


@dataclass(frozen=True, eq=False)
class Wiring(Sealed):
    """Vertices and cables. Cable k is the two directed links 2k (a to b) and 2k + 1 (b to a).

    Attributes
    ----------
    vertices
        Names; the ranks come first, in rank order, then NICs and switches.
    node
        NVLink domain of each rank, int32 [ranks].
    end
        Vertices of each cable, int32 [cables, 2].
    tier
        Tier of each cable.
    nominal, bandwidth, latency_s
        Per cable and direction: datasheet and effective bytes/s, seconds.
    through_ranks
        Whether a path may pass through a rank (rings and meshes of GPUs without switches).
    """

    vertices: tuple[str, ...]
    node: Array
    end: Array
    tier: tuple[str, ...]
    nominal: Array
    bandwidth: Array
    latency_s: Array
    through_ranks: bool = False

    def __post_init__(self) -> None:
        sizes = {"cables": len(self.tier), "ends": 2}
        seal(self, "node", self.node, np.int32, ("ranks",))
        seal(self, "end", self.end, np.int32, ("cables", "ends"), sizes)
        for field in ("nominal", "bandwidth", "latency_s"):
            seal(self, field, getattr(self, field), np.float64, ("cables",), sizes)

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return len(self.node)

    @property
    def link_from(self) -> Array:
        """Vertex where each directed link starts, int32 [links]."""
        return self.end.reshape(-1)

    @property
    def link_to(self) -> Array:
        """Vertex where each directed link ends, int32 [links]."""
        return np.ascontiguousarray(self.end[:, ::-1]).reshape(-1)

    def link_names(self) -> tuple[str, ...]:
        """Return ``"a->b"`` per directed link; parallel cables get ``#2``, ``#3``."""
        seen: dict[tuple[int, int], int] = {}
        names = []
        for a, b in self.end.tolist():
            key = (min(a, b), max(a, b))
            seen[key] = seen.get(key, 0) + 1
            twin = f"#{seen[key]}" if seen[key] > 1 else ""
            names += [
                f"{self.vertices[a]}->{self.vertices[b]}{twin}",
                f"{self.vertices[b]}->{self.vertices[a]}{twin}",
            ]
        return tuple(names)


def unconnected(wiring: Wiring, s: int, t: int) -> InputError:
    """Return the error for two ranks without a path."""
    a, b = wiring.vertices[s], wiring.vertices[t]
    if wiring.node[s] == wiring.node[t]:
        advice = f"add [tier.node], or a [[link]] on the way from {a} to {b}"
    elif any(name.startswith("rail") for name in wiring.vertices):
        advice = (
            "add a [tier.spine] or `pxn = true` (to [tier.rail]) where rails must meet, take [tier.leaf] instead if "
            "all NICs of a node hang on one switch, add a [[link]], or `through_ranks = true` to let GPUs forward"
        )
    else:
        advice = (
            "add a [tier.rail] or [tier.leaf] (with [tier.spine] or `pxn = true` where rails must meet), a [[link]] "
            "on the way, or `through_ranks = true` to let GPUs forward"
        )
    return InputError(f"topology: ranks {s} ({a}) and {t} ({b}) are not connected; {advice}")
