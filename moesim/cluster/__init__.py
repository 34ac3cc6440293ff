"""Clusters: ranks, links and the path of every rank pair; read from TOML, compiled once to flat arrays."""

from moesim.cluster.cluster import Cluster
from moesim.cluster.deployment import Deployment
from moesim.cluster.paths import Paths

__all__ = ["Cluster", "Deployment", "Paths"]
