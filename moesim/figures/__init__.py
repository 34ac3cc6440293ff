"""Figures: pure functions from arrays to plotly figures, with units, for reports and for the app."""

from moesim.figures.bars import comparison, layer_split
from moesim.figures.heatmaps import expert_loads, largest_ratio, load_heatmap, node_traffic
from moesim.figures.timeline import timeline
from moesim.figures.topology import topology, topology_layout

__all__ = [
    "comparison",
    "expert_loads",
    "largest_ratio",
    "layer_split",
    "load_heatmap",
    "node_traffic",
    "timeline",
    "topology",
    "topology_layout",
]
