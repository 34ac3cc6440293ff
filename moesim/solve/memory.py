"""Whether the weights fit the memory of every rank."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import Infeasible
from moesim.base.units import count
from moesim.cluster import Cluster
from moesim.spec import BF16, ModelSpec

RESERVED_MEMORY: Final = 0.1
"""Share of a GPU's memory kept free of weights for KV cache, activations and buffers; engines ask for far more."""


def other_weights(spec: ModelSpec) -> float:
    """Return the bytes of all weights but the routed experts', of which every rank holds a whole copy in bf16."""
    return (spec.parameters() - spec.moe_layers * spec.experts * spec.expert_parameters) * BF16


def check_memory(spec: ModelSpec, cluster: Cluster, slots_per_rank: int) -> None:
    """Check that the weights fit every rank.

    Raises
    ------
    Infeasible
        If experts, the other weights (bf16, a whole copy on each rank) and the reserve exceed a rank's memory.
    """
    experts = spec.moe_layers * slots_per_rank * spec.expert_bytes
    others = other_weights(spec)
    room = cluster.memory_bytes * (1 - RESERVED_MEMORY)
    if (room < experts + others).any():
        rank = int(np.argmin(cluster.memory_bytes))
        most = int((room[rank] - others) // (spec.moe_layers * spec.expert_bytes))
        advice = f"use at most {count(most, 'slot')} per rank" if most > 0 else "use GPUs with more memory"
        held = f"{count(slots_per_rank, 'slot')} per rank in {count(spec.moe_layers, 'layer')}"
        raise Infeasible(
            f"memory: the experts of {held} need {experts / 1e9:.1f} GB beside {others / 1e9:.1f} GB of other weights, "
            f"but rank {rank} of {cluster.name} has {cluster.memory_bytes[rank] / 1e9:.1f} GB "
            f"({RESERVED_MEMORY:.0%} kept free); {advice}"
        )


def slots_that_fit(spec: ModelSpec, cluster: Cluster) -> NDArray[np.int64]:
    """Return the slots that the memory of each rank holds in every layer, int64 [ranks]; 0 where not even one fits."""
    room = cluster.memory_bytes * (1 - RESERVED_MEMORY) - other_weights(spec)
    return np.asarray(np.maximum(room // (spec.moe_layers * spec.expert_bytes), 0).astype(np.int64))
