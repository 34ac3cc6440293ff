"""Layers in which a trace holds no pick: nothing can be planned there, and often another model was recorded."""

from __future__ import annotations

from typing import Final

import numpy as np

from moesim.trace.trace import Trace

_LOOKED_AT: Final = 1024
"""Tokens among which nearly every layer has a pick; the others are looked at whole."""


def unpicked_layers(trace: Trace) -> list[int]:
    """Return the decoder layers among the trace's MoE layers in which no token picks an expert."""
    if not trace.rows:
        return []
    if trace.routes is None:
        some = trace.counts.any(axis=(0, 2))
    else:
        some = np.any(trace.routes[:_LOOKED_AT] >= 0, axis=(0, 2))
        for layer in np.flatnonzero(~some):
            some[layer] = (trace.routes[:, layer] >= 0).any()
    return [trace.spec.layer_ids[layer] for layer in np.flatnonzero(~some)]


def unpicked_note(trace: Trace) -> str:
    """Return what a reader of results must know of layers without picks; empty if there are none."""
    layers = unpicked_layers(trace)
    if not layers:
        return ""
    named = f"decoder layer {layers[0]}" if len(layers) == 1 else f"decoder layers {', '.join(map(str, layers))}"
    return (
        f"unpicked: no token picks an expert in {named}, so that any placement is as good there; where a layer is "
        "dense, another model was recorded than was given"
    )
