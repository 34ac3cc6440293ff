"""From a plan to a serving run: pools, limits of memory, step models; and what failures and new plans change."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import Infeasible, InputError
from moesim.base.units import count
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.placement import Placement
from moesim.simulate.serving import (
    Affinity,
    Arrivals,
    Change,
    ClosedForm,
    Limits,
    PoolSpec,
    ServingReport,
    TokenSource,
    serve,
)
from moesim.simulate.serving.model import PRICED_LAYERS
from moesim.solve.memory import other_weights
from moesim.spec import BF16, ModelSpec
from moesim.trace import Trace


@dataclass(frozen=True)
class Serving:
    """What serves: a group of ranks under a placement, at a model's dimensions.

    Parameters
    ----------
    cluster, placement, policy, costs
        What runs.
    tokens, requests
        Limits of a rank: tokens of a step, running requests.
    memory_fraction
        Part of a GPU's memory for weights and KV cache, as engines call it (``mem-fraction-static``,
        ``gpu-memory-utilization``).
    kv_tokens
        Tokens that a rank caches; None: what fits beside the weights.
    """

    cluster: Cluster
    placement: Placement
    policy: str
    costs: Costs
    tokens: int = 2048
    requests: int = 256
    memory_fraction: float = 0.9
    kv_tokens: int | None = None

    def limits(self, model: ModelSpec) -> Limits:
        """Return what each rank can take; the fullest rank decides for all."""
        room = self.kv_tokens
        if room is None:
            room = cache_tokens(model, self.cluster, self.placement.slots_per_rank, self.memory_fraction)
        return Limits(self.tokens, self.requests, room)


def cache_tokens(model: ModelSpec, cluster: Cluster, slots_per_rank: int, memory_fraction: float) -> int:
    """Return the tokens whose keys and values fit beside the weights on the smallest GPU (bf16, all decoder layers).

    Raises
    ------
    Infeasible
        If the weights leave no room.
    InputError
        If the attention of the model is not known.
    """
    if model.attention is None:
        raise InputError(
            f"serving: the attention of {model.name} is not known, so neither is what a cached token takes; give "
            "kv_tokens= (tokens that a rank caches), or the dimensions of a model that is known"
        )
    if not 0 < memory_fraction <= 1:
        raise InputError(f"serving: memory fraction: expected a part above 0 and at most 1, got {memory_fraction}")
    experts = model.moe_layers * slots_per_rank * model.expert_bytes
    others = other_weights(model)
    room = float(cluster.memory_bytes.min()) * memory_fraction - experts - others
    tokens = int(room // (model.attention.cache_elements() * BF16 * model.num_hidden_layers))
    if tokens < 1:
        raise Infeasible(
            f"serving: {experts / 1e9:.1f} GB of experts and {others / 1e9:.1f} GB of other weights leave no room for "
            f"a KV cache in {memory_fraction:.0%} of {float(cluster.memory_bytes.min()) / 1e9:.1f} GB; use fewer slots "
            "per rank, or more or larger GPUs"
        )
    return tokens


def served_model(trace: Trace, dims: ModelSpec | None) -> tuple[ModelSpec, tuple[str, ...]]:
    """Return the model that is served, and notes.

    Where the trace holds some of the layers only, or with dimensions of another model, whose layers count too, each
    recorded layer stands for several.
    """
    spec = trace.spec if dims is None else trace.spec.at_dimensions(dims)
    dims = dims or trace.spec.whole()
    if dims.layers == trace.layers and not spec.left_out:
        return spec, ()
    spec = dataclasses.replace(
        spec,
        layer_ids=dims.layer_ids,
        num_hidden_layers=dims.num_hidden_layers,
        left_out=dims.left_out,
        vocab=dims.vocab,
        dense_intermediate=dims.dense_intermediate,
    )
    note = f"{count(trace.layers, 'recorded layer')} in place of the {count(dims.layers, 'MoE layer')} of {dims.name}"
    return spec, (note,)


def serve_plan(
    trace: Trace,
    arrivals: Arrivals,
    serving: Serving,
    *,
    decode: Serving | None = None,
    path: tuple[float, float] | None = None,
    dims: ModelSpec | None = None,
    scheduler: str = "least-loaded",
    changes: Sequence[Change] = (),
    overhead_s: float = 0.0,
    exact: bool = False,
    until_s: float | None = None,
    slo_ttft_s: float = 2.0,
    slo_tpot_s: float = 0.1,
    seed: int = 0,
) -> ServingReport:
    """Serve requests, whose tokens are routed as in a trace, under a placement.

    Parameters
    ----------
    trace
        Traffic whose routing the tokens draw.
    arrivals
        The requests.
    serving, decode
        Who serves; with ``decode``, who serves prompts and who answers (prefill/decode disaggregation).
    path
        Latency and bandwidth of a KV cache on its way from prefill to decode, see :func:`kv_path`.
    dims
        Model at whose dimensions and layers routing is replayed.
    scheduler, changes, until_s, slo_ttft_s, slo_tpot_s
        See :func:`moesim.simulate.serving.serve`.
    overhead_s
        Seconds that every step takes beside.
    exact
        Price every step anew, on all layers: slow.
    seed
        Draws the recorded request of each served one.
    """
    if not 0 <= overhead_s < math.inf:
        raise InputError(f"serving: overhead_s: expected seconds, finite and not negative, got {overhead_s}")
    for name, value in (("slo_ttft_s", slo_ttft_s), ("slo_tpot_s", slo_tpot_s)):
        if not value >= 0:
            raise InputError(f"serving: {name}: expected seconds, not negative, got {value}")
    model, notes = served_model(trace, dims)
    source = TokenSource(trace, len(arrivals), seed)
    parts = [serving] if decode is None else [serving, decode]
    pools = [_pool(part, source, model, overhead_s, exact, seed) for part in parts]
    transfer: Callable[[int], float] | None = None
    if decode is not None and model.attention is not None:
        latency_s, bandwidth = path or (0.0, math.inf)
        per_token = model.attention.cache_elements() * BF16 * model.num_hidden_layers

        def transfer(tokens: int) -> float:
            return latency_s + tokens * per_token / bandwidth

    prices = "every step" if exact else f"steps of one make-up share prices of {PRICED_LAYERS} layers"
    facts: dict[str, Any] = {
        "model": model.name,
        "topology": serving.cluster.name,
        "ranks": sum(part.cluster.ranks for part in parts),
        "policy": serving.policy,
        "transport": [part.costs.transport for part in parts],
        "slots_per_rank": [part.placement.slots_per_rank for part in parts],
        "kv_tokens_per_rank": [pool.limits.kv_tokens for pool in pools],
        "step_model": f"closed form, {prices}",
        "digests": {"trace": trace.digest, "placements": [part.placement.digest for part in parts]},
    }
    # all layers are served, which the notes say already
    said = [*notes, *source.notes, *serving.costs.assumptions]
    if dims is not None:
        said.append(f"routing of {trace.spec.name} replayed at the dimensions of {dims.name}")
    return serve(
        arrivals,
        pools[0],
        decode=pools[1] if decode is not None else None,
        transfer_s=transfer,
        scheduler=scheduler,
        changes=changes,
        until_s=until_s,
        slo_ttft_s=slo_ttft_s,
        slo_tpot_s=slo_tpot_s,
        facts=facts,
        notes=said,
    )


def step_model(
    part: Serving, source: TokenSource, model: ModelSpec, *, overhead_s: float = 0.0, exact: bool = False,
    rank_of: Array | None = None, seed: int = 0,
) -> ClosedForm:  # fmt: skip
    """Return the closed form of a placement as step model of a served model."""
    return ClosedForm(
        source, part.cluster, part.placement, part.policy, part.costs, layers=model.layers, model=model,
        overhead_s=overhead_s, exact=exact, rank_of=rank_of, seed=seed,
    )  # fmt: skip


def _pool(part: Serving, source: TokenSource, model: ModelSpec, overhead_s: float, exact: bool, seed: int) -> PoolSpec:
    closed = step_model(part, source, model, overhead_s=overhead_s, exact=exact, seed=seed)
    affinity = Affinity(source, part.placement, np.asarray(part.cluster.node))
    return PoolSpec(part.cluster.ranks, closed, part.limits(model), affinity)


def kv_path(whole: Cluster, senders: int) -> tuple[float, float]:
    """Return latency (s) and bandwidth (bytes/s) of the worst path from the first ranks of a cluster to the others.

    Parameters
    ----------
    senders
        Ranks 0 to ``senders - 1`` serve prompts, the others answer.
    """
    source = np.repeat(np.arange(senders), whole.ranks - senders)
    target = np.tile(np.arange(senders, whole.ranks), senders)
    per_byte = whole.paths.slowest(1.0 / np.asarray(whole.link_bandwidth), source, target)
    return float(whole.paths.latency_s(source, target).max()), 1.0 / float(per_byte.max())
