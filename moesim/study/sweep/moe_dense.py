"""Kind "moe-dense": a step of the MoE, or of a dense model that spends as many parameters on a token, on the same GPUs.

The dense model has the attention, width and layers of the MoE; its feed-forward block is as wide as all that a token
visits in the MoE (top-k routed experts and the shared ones). It runs data parallel, or in tensor parallel groups of
consecutive ranks that gather their tokens before each half of a layer and scatter their sums after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.costs.attention import attention_s, exchange_s, grouped
from moesim.costs.roofline import Device, mlp_s, uses_fp8
from moesim.solve.objective import fixed_parts
from moesim.study.sweep import step as moe
from moesim.study.sweep.kinds import Row
from moesim.study.sweep.settings import parse
from moesim.study.windows import costs_of, steps_of
from moesim.trace import DECODE, Batches, Trace

COLUMNS: Final = ("step_s", "tokens_per_s_per_gpu", "all_to_all_s", "compute_s", "attention_s", "weight_bytes_per_gpu")
RESULTS: Final = (*moe.RESULTS, "weight_bytes_per_gpu")


class MoeDenseSettings(moe.StepSettings):
    """Settings of a step, which of the two models runs it, and the tensor parallel degree of the dense one."""

    architecture: Literal["moe", "dense"] = "moe"
    tp: int = 1


def needs(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Callable[[], Any]]:
    """Check settings and name the trace and the cluster."""
    chosen = parse(MoeDenseSettings, settings)
    if chosen.tp < 1:
        raise InputError(f"tp: expected at least 1, got {chosen.tp}")
    return chosen.needs(folder)


def run(settings: Mapping[str, Any], folder: Path, shared: Mapping[str, Any]) -> Row:
    """Return a step of one of the two models; the batches and their contexts are the same."""
    chosen = parse(MoeDenseSettings, settings)
    trace: Trace = shared[chosen.trace_key]
    if chosen.architecture == "moe":
        rest = {key: value for key, value in settings.items() if key not in ("architecture", "tp")}
        row = moe.run(rest, folder, shared)
        other = chosen.dimensions(trace)
        spec = trace.spec if other is None else trace.spec.at_dimensions(other)
        # every rank holds the shared experts whole, as the block of the dense model does
        together = trace.layers * spec.shared_parameters * spec.weight_bytes
        return row | {"weight_bytes_per_gpu": row["expert_bytes_per_gpu"] + together}
    group = chosen.group(shared)
    if group.ranks % chosen.tp:
        raise InputError(f"tp: {chosen.tp} does not divide the {count(group.ranks, 'rank')} of the group")
    batches = steps_of(
        chosen.parts(shared)[1], group, phase=chosen.phase, tokens_per_rank=chosen.tokens_per_rank,
        max_steps=chosen.steps, seed=chosen.seed,
    )  # fmt: skip
    costs = costs_of(batches, group, dims=chosen.dimensions(trace), compute=chosen.compute)
    steps = range(len(batches))
    parts = np.mean([dense_layer_s(batches, step, group, costs, chosen.tp) for step in steps], axis=0)
    outside_s = np.mean([fixed_parts(batches, step, costs).outside_s.max() for step in steps])
    attention, forward, reduced = (float(part) * trace.layers for part in parts)
    step_s = attention + forward + reduced
    model_step_s = step_s * costs.spec.stands_for + float(outside_s)
    tokens = len(batches.token) / len(batches)
    spec = costs.spec
    return {
        "gpus": group.ranks,
        "nodes": group.nodes,
        "tokens_per_step": tokens,
        "step_s": step_s,
        "model_step_s": model_step_s,
        "tokens_per_s": tokens / step_s,
        "tokens_per_s_per_gpu": tokens / model_step_s / group.ranks,
        "all_to_all_s": reduced,
        "compute_s": forward,
        "attention_s": attention,
        "weight_bytes_per_gpu": trace.layers * _width(costs) * _matrices(costs) * spec.hidden * spec.weight_bytes
        / chosen.tp,
        "notes": "\n".join(
            note for note in ("all-reduces of the dense model stand under all_to_all_s", costs.partial_note) if note
        ),
    }  # fmt: skip


def dense_layer_s(batches: Batches, step: int, group: Cluster, costs: Costs, tp: int) -> Array:
    """Return the seconds of attention, feed-forward and its exchange of one dense layer [3], of the slowest ranks."""
    home, position = batches.homes(step), batches.positions(step)
    tokens = np.bincount(home, minlength=group.ranks).astype(np.float64)
    context = np.bincount(home, weights=position + 1.0, minlength=group.ranks)
    spec = costs.spec
    decode = int(batches.phase[step]) == DECODE
    together = grouped(tokens, tp) if tp > 1 else tokens
    attention = attention_s(tokens, context, decode, group, spec, tp)
    device = Device.of(group, uses_fp8(spec))
    forward = mlp_s(together[:, None], device, spec, max(1, _width(costs) // tp), permuted=False)
    reduce = exchange_s(together, group, spec, tp) if tp > 1 else np.zeros(group.ranks)
    return np.array([attention.max(), forward.max(), reduce.max()])


def _width(costs: Costs) -> int:
    spec = costs.spec
    return spec.top_k * spec.intermediate + spec.shared_intermediate


def _matrices(costs: Costs) -> int:
    return 3 if costs.spec.gated else 2
