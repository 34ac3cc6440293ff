"""Whether the weights fit the memory of every rank."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from moesim.base.arrays import Array
from moesim.base.errors import Infeasible
from moesim.base.units import count
from moesim.cluster import Cluster
from moesim.placement import EMPTY
from moesim.spec import BF16, ModelSpec

RESERVED_MEMORY: Final = 0.1
"""Share of a GPU's memory kept free of weights for KV cache, activations and buffers; engines ask for far more."""


def other_weights(spec: ModelSpec) -> float:
    """Return the bytes of all weights but the routed experts', of which every rank holds a whole copy.

    Linear layers (attention, dense layers, shared experts) are as narrow as the experts down to a byte: block-scaled
    fp8 quantises all of them, models with narrower experts keep them in bf16. The costs of attention have it so too.
    Embeddings, output head and gates are bf16.
    """
    everything = spec.parameters() - spec.moe_layers * spec.experts * spec.expert_parameters
    plain = spec.moe_layers * spec.hidden * spec.experts
    plain += spec.vocab * spec.hidden * (1 if spec.tied_embeddings else 2)
    return (everything - plain) * (spec.weight_bytes if 1 <= spec.weight_bytes < BF16 else BF16) + plain * BF16


def check_memory(spec: ModelSpec, cluster: Cluster, slots: int | NDArray[np.integer]) -> None:
    """Check that the weights fit every rank.

    Parameters
    ----------
    slots
        Slots that a rank fills in every layer, or in each layer [layers, ranks]; layers that the trace leaves out
        count as the mean of those it holds.

    Raises
    ------
    Infeasible
        If experts, the other weights (a whole copy on each rank) and the reserve exceed a rank's memory.
    """
    filled = np.broadcast_to(np.asarray(slots, np.float64), (spec.layers, cluster.ranks)).mean(axis=0)
    experts = spec.moe_layers * filled * spec.expert_bytes
    others = other_weights(spec)
    lacking = experts + others - cluster.memory_bytes * (1 - RESERVED_MEMORY)
    if (lacking > 0).any():
        rank = int(lacking.argmax())
        most, fewest = int(slots_that_fit(spec, cluster)[rank]), -(-spec.experts // cluster.ranks)
        if most >= fewest:
            advice = f"use at most {count(most, 'slot')} there"
        else:
            advice = (
                f"{most} fit there, where {count(cluster.ranks, 'rank')} need {fewest} each to hold "
                f"{count(spec.experts, 'expert')}: take more ranks, more memory, or a model of narrower weights"
            )
        held = f"{filled[rank]:g} slots of rank {rank} in {count(spec.moe_layers, 'layer')}"
        raise Infeasible(
            f"memory: the experts of {held} need {experts[rank] / 1e9:.1f} GB beside {others / 1e9:.1f} GB of other "
            f"weights, but it has {cluster.memory_bytes[rank] / 1e9:.1f} GB on {cluster.name} ({RESERVED_MEMORY:.0%} "
            f"kept free); {advice}"
        )


def slots_in_use(*experts: Array) -> NDArray[np.float64]:
    """Return the slots that placements [layers, ranks, slots] take of each rank, mean over layers, float64 [ranks].

    A slot that is empty in all layers of a rank, or on all ranks of a layer, takes no memory: rank slots and slot
    budgets leave such. Any other one is there, filled or not.
    """
    filled = np.max([(each != EMPTY).sum(axis=2) for each in experts], axis=0)
    return np.asarray(np.minimum(filled.max(axis=1)[:, None], filled.max(axis=0)).mean(axis=0), np.float64)


def slots_that_fit(spec: ModelSpec, cluster: Cluster) -> NDArray[np.int64]:
    """Return the slots that the memory of each rank holds in every layer, int64 [ranks]; 0 where not even one fits."""
    room = cluster.memory_bytes * (1 - RESERVED_MEMORY) - other_weights(spec)
    return np.asarray(np.maximum(room // (spec.moe_layers * spec.expert_bytes), 0).astype(np.int64))
