"""What a plan promises, as facts: score, bound and gap, of the whole step and of every layer."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from moesim.cli import terms

if TYPE_CHECKING:
    from moesim.solve import Plan


def plan_facts(plan: Plan, every_layer: bool = False) -> dict[str, Any]:
    """Return what a plan promises, as plain data with stable keys; of the layers a line, or every one."""
    layers = layer_rows(plan)
    return {
        "solver": plan.solver,
        "policy": plan.policy,
        "transport": plan.transport,
        "score_s": plan.score_s,
        "bound_s": plan.bound_s,
        "gap": plan.gap,
        **({"by_layer": layers} if every_layer else {"layer_gap": layer_line(layers)}),
        "wall_s": plan.wall_s,
        "seed": plan.seed,
        **plan.placement.summary(),
        **terms.terms_facts(plan.terms),
        "notes": list(plan.notes),
    }


def layer_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return score, bound and gap of every layer on its own, by decoder index; the gap is null where the bound is 0."""
    ids = plan.placement.layer_ids or range(plan.placement.layers)
    columns = zip(ids, plan.layer_score_s.tolist(), plan.layer_bound_s.tolist(), plan.layer_gap.tolist(), strict=True)
    return [
        {"layer": layer, "score_s": score_s, "bound_s": bound_s, "gap": gap if bound_s > 0 else None}
        for layer, score_s, bound_s, gap in columns
    ]


def layer_line(rows: list[dict[str, Any]]) -> str:
    """Return the gaps of all layers in a line: median, smallest, and the layers with the largest."""
    known = sorted((row["gap"], row["layer"]) for row in rows if row["gap"] is not None)
    if not known:
        return "-"
    middle = statistics.median(gap for gap, _ in known)
    largest = ", ".join(f"{gap:.1%} (layer {layer})" for gap, layer in known[:-4:-1])
    return f"median {middle:.1%}, smallest {known[0][0]:.1%} (layer {known[0][1]}), largest {largest}"
