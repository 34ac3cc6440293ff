"""Costs: what turns counts into seconds. Compute, transports, network models, and the closed form of a step."""

from moesim.costs.closed_form import Clocks, layer_clocks, received, step_clocks, step_time
from moesim.costs.costs import Costs
from moesim.costs.types import COMPUTES, NETWORKS, TRANSPORTS, FlowLike, Timing, Transfer

__all__ = [
    "COMPUTES",
    "NETWORKS",
    "TRANSPORTS",
    "Clocks",
    "Costs",
    "FlowLike",
    "Timing",
    "Transfer",
    "layer_clocks",
    "received",
    "step_clocks",
    "step_time",
]
