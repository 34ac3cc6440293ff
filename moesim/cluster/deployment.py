"""Which GPUs form the expert-parallel group, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.cluster.cluster import Cluster


@dataclass(frozen=True)
class Deployment:
    """How a model sits on a cluster.

    Parameters
    ----------
    ranks
        Cluster ranks of the expert-parallel group, in EP order; None: all of the cluster, or its first ``size``.
    size
        Number of ranks of the group, where it is the first ranks of the cluster.
    attention_tp
        GPUs that share the attention of one request (tensor parallel); they divide the group.
    """

    ranks: tuple[int, ...] | None = None
    size: int | None = None
    attention_tp: int = 1

    def __post_init__(self) -> None:
        if self.ranks is not None:
            object.__setattr__(self, "ranks", tuple(int(rank) for rank in self.ranks))
        if self.ranks is not None and self.size is not None:
            raise InputError("Deployment: give either ranks or size, not both")
        if self.size is not None and self.size < 1:
            raise InputError(f"Deployment.size: expected at least 1 rank, got {self.size}")
        if self.attention_tp < 1:
            raise InputError(f"Deployment.attention_tp: expected at least 1, got {self.attention_tp}")

    def restrict(self, cluster: Cluster) -> Cluster:
        """Return the sub-cluster of the group, ranks in EP order; links of idle GPUs stay.

        Raises
        ------
        InputError
            If the cluster has no such ranks, or the attention groups do not divide the group.
        """
        if self.size is not None and self.size > cluster.ranks:
            raise InputError(
                f"Deployment.size: {count(self.size, 'rank')} wanted, cluster {cluster.name} has {cluster.ranks}; "
                "take a larger cluster (`nodes = ...`) or fewer ranks"
            )
        group = cluster
        if self.ranks is not None:
            group = cluster.restrict(self.ranks)
        elif self.size is not None and self.size < cluster.ranks:
            group = cluster.restrict(range(self.size))
        if group.ranks % self.attention_tp:
            raise InputError(
                f"Deployment.attention_tp: {self.attention_tp} does not divide the {count(group.ranks, 'rank')} of the "
                "group; give a number that does"
            )
        return group
