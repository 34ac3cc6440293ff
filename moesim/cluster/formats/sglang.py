"""The rank costs that SGLang's topology-aware EPLB reads (``--eplb-topology``, pull request 37923).

``{"rank_cost_matrix": [[0, 1], [1, 0]]}``: from rank to rank in expert-parallel order, a zero diagonal, any unit.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.base.files import write_text
from moesim.cluster.cluster import Cluster

_MOST_RANKS = 2048
_MESSAGE = 2.0**20  # bytes; large enough that bandwidth decides and latency breaks ties


def write(cluster: Cluster, path: str | Path) -> None:
    """Write the costs of a cluster as JSON; restrict it to the ranks of the group first, in their order.

    Raises
    ------
    InputError
        If there are more ranks than a file of their square should hold.
    """
    rows = [[float(f"{cost:.6g}") for cost in row] for row in rank_costs(cluster)]
    write_text(path, json.dumps({"rank_cost_matrix": rows}) + "\n")


def rank_costs(cluster: Cluster) -> Array:
    """Return the time of 1 MiB from rank to rank on an idle network over that of the fastest pair, [ranks, ranks].

    Raises
    ------
    InputError
        If there are more ranks than a file of their square should hold.
    """
    if cluster.ranks > _MOST_RANKS:
        raise InputError(
            f"cluster {cluster.name}: costs of {cluster.ranks:,} x {cluster.ranks:,} ranks do not fit a file; "
            f"restrict it to the ranks of the group ({_MOST_RANKS:,} at most)"
        )
    s, t = np.divmod(np.arange(cluster.ranks**2), cluster.ranks)
    seconds = cluster.paths.latency_s(s, t) + cluster.paths.alone_s(_MESSAGE / cluster.link_bandwidth, s, t)
    fastest = seconds[s != t].min(initial=np.inf)
    costs: Array = np.where(s == t, 0.0, seconds / fastest).reshape(cluster.ranks, cluster.ranks)
    return costs
