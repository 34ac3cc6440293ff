"""Figures: pure functions from arrays to plotly figures, with units, for reports and for the app."""

from moesim.figures.anytime import anytime
from moesim.figures.bars import comparison, layer_split
from moesim.figures.heatmaps import expert_loads, largest_ratio, load_heatmap, node_traffic
from moesim.figures.lines import lines
from moesim.figures.placements import losses, placement_diff, stragglers
from moesim.figures.routing import coactivation, divergence, domain_experts
from moesim.figures.theme import untitled
from moesim.figures.timeline import timeline
from moesim.figures.topology import topology, topology_layout
from moesim.figures.tradeoffs import sensitivity, spread, tradeoff

__all__ = [
    "anytime",
    "coactivation",
    "comparison",
    "divergence",
    "domain_experts",
    "expert_loads",
    "largest_ratio",
    "layer_split",
    "lines",
    "load_heatmap",
    "losses",
    "node_traffic",
    "placement_diff",
    "sensitivity",
    "spread",
    "stragglers",
    "timeline",
    "topology",
    "topology_layout",
    "tradeoff",
    "untitled",
]
