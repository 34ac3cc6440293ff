"""Published effects of balance and overlap on a whole deployment, as ratios: sign and size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.costs import Timing, received
from moesim.placement import Placement
from moesim.simulate import simulate
from moesim.solve.packing import balance
from moesim.spec import ModelSpec
from moesim.trace import DECODE, PREFILL, Trace
from moesim.validate.machines import machine
from moesim.validate.rows import Case, Row, Skip, role_of

if TYPE_CHECKING:
    from moesim.cluster import Cluster

COLUMNS = ("id", "value", "ratio_vs_baseline")
_TABLE: Final = "balance_effects"
_LAYERS: Final = 4  # enough for two batches to alternate in the steady state
_SKEW: Final = 1.564
"""(max - mean) / mean of the ranks' loads of DeepSeek-R1 at EP32, without EPLB (TensorRT-LLM blog 4, table 1)."""
_REDUNDANT: Final = 32  # slots beyond the 256 experts, as in the SGLang runs
_PREFILL: Final = (4, 4096, 2048)  # nodes, tokens of a rank (16,384 are more of the same), mean position
_DECODE_CONTEXT: Final = 2000


def effects(rows: Sequence[Row]) -> Iterator[Case | Skip]:
    """Score the rows whose deployment is described well enough to be simulated; the null sees no effect."""
    for row in rows:
        if row["id"] in _THROUGHPUT:
            label, tokens, predict = _THROUGHPUT[row["id"]]
            yield Case(
                f"{_TABLE} throughput", role_of(row), f"{row['id']} {label}, tokens/s a node", float(row["value"]),
                8 * tokens / predict(), _peak_tokens_per_s(),
            )  # fmt: skip
        case = _CASES.get(row["id"])
        if case is None and row["id"] in _THROUGHPUT:
            continue
        if case is None:
            yield Skip(_TABLE, "figure, context, or a deployment that is not described")
            continue
        label, measured, predict = case
        yield Case(_TABLE, role_of(row), f"{row['id']} {label}", measured(row), predict(), 1.0)


@lru_cache(maxsize=64)
def _step_s(
    nodes: int, tokens: int, context: int, decode: bool, placed: str, schedule: str, device: str = "h100"
) -> float:
    """Return seconds of a step of DeepSeek-V3 on nodes of 8 GPUs: a few layers stand for all 58."""
    where = machine(device, nodes, 8)
    spec, routes, popularity = _batch(where.ranks, tokens, 0.0 if placed == "even" else _sigma())
    count = len(routes)
    trace = Trace(
        spec,
        routes=np.repeat(routes[:, None], spec.layers, axis=1),
        step=np.zeros(count, np.int32),
        request=np.arange(count, dtype=np.int32),
        position=np.full(count, context, np.int32),
        source=np.repeat(np.arange(where.ranks, dtype=np.int32), tokens),
        phase=np.full(count, DECODE if decode else PREFILL, np.uint8),
        origin={"synthetic": True},
    )
    placement = _placement(where, spec, popularity, placed)
    transport = "direct" if decode else "hierarchical"
    report = simulate(trace, where, placement, policy="hash", transport=transport, schedule=schedule)
    full = ModelSpec.preset("deepseek-v3")
    outside_s = report.model_step_s - report.mean_step_s
    return report.steps * (report.mean_step_s * full.layers / _LAYERS + outside_s)


@lru_cache(maxsize=8)
def _batch(ranks: int, tokens: int, sigma: float) -> tuple[ModelSpec, Array, Array]:
    """Return the model, routes [tokens, picks] drawn from a log-normal popularity, and that popularity."""
    full = ModelSpec.preset("deepseek-v3")
    dense = full.num_hidden_layers - full.layers
    spec = dataclasses.replace(full, layer_ids=tuple(range(dense, dense + _LAYERS)), num_hidden_layers=dense + _LAYERS)
    rng = np.random.default_rng(0)
    logit = (sigma * rng.standard_normal(spec.experts)).astype(np.float32)
    parts = []
    for first in range(0, ranks * tokens, 32_768):
        size = (min(32_768, ranks * tokens - first), spec.experts)
        # Gumbel noise: the top picks are a draw without replacement by popularity
        score = logit - np.log(np.maximum(rng.standard_exponential(size, dtype=np.float32), 1e-30))
        parts.append(np.argpartition(-score, spec.top_k - 1, axis=1)[:, : spec.top_k].astype(np.int16))
    routes = np.concatenate(parts)
    return spec, routes, np.bincount(routes.ravel(), minlength=spec.experts).astype(float)


@lru_cache(maxsize=1)
def _sigma() -> float:
    """Return the log-normal spread whose busiest of 32 ranks is as skewed as DeepSeek-R1's, by bisection."""
    low, high = 0.0, 3.0
    for _ in range(12):
        middle = (low + high) / 2
        loads = _batch.__wrapped__(32, 64, middle)[2].reshape(32, -1).sum(axis=1)
        low, high = (middle, high) if loads.max() / loads.mean() - 1 < _SKEW else (low, middle)
    return (low + high) / 2


def _placement(where: Cluster, spec: ModelSpec, popularity: Array, placed: str) -> Placement:
    if placed == "eplb":
        experts = balance(popularity[None], where.ranks, (spec.experts + _REDUNDANT) // where.ranks)
    else:
        per_rank = -(-spec.experts // where.ranks)
        experts = np.full((1, where.ranks * per_rank), -1, np.int32)
        experts[0, : spec.experts] = np.arange(spec.experts)
        experts = experts.reshape(1, where.ranks, per_rank)
    return Placement(np.repeat(experts, spec.layers, axis=0).astype(np.int32), spec.experts)


def _prefill(placed: str, schedule: str) -> float:
    nodes, tokens, context = _PREFILL
    return _step_s(nodes, tokens, context, False, placed, schedule)


def _decode(tokens: int, placed: str, schedule: str, context: int = _DECODE_CONTEXT) -> float:
    return _step_s(9, tokens, context, True, placed, schedule)


def _peak_tokens_per_s() -> float:
    """Return tokens a second of eight Hopper GPUs that do nothing but multiply at peak."""
    flops = float(machine("h100", 1, 8).flops_fp8[0])
    return 8 * flops / (2 * ModelSpec.preset("deepseek-v3").parameters(active=True))


def _barrier() -> float:
    """Return when the idle rank is through, of what the busy rank needs, where collectives wait for everybody."""
    floor = 28.2e-6 / 2
    both = np.full((1, 2), floor)
    exchange = Timing(
        arrive_s=both, own_s=both, link_bytes=np.zeros((1, 1)), link_time_s=np.zeros((1, 1)),
        binding=np.zeros(1, np.int64), floor_s=np.full(1, floor), drain_s=np.zeros(1),
        senders=~np.eye(2, dtype=bool)[None],
    )  # fmt: skip
    home = received(received(np.zeros(2), exchange, 0) + np.array([63.0e-6, 56.8e-6]), exchange, 0)
    return float(home[1] / home[0])


def _value(row: Row) -> float:
    return float(row["value"])


_CASES: Final[dict[str, tuple[str, Callable[[Row], float], Callable[[], float]]]] = {
    "E02": (
        "prefill EP32, perfect balance over measured skew, throughput",
        lambda row: float(row["ratio_vs_baseline"]),
        lambda: _prefill("contiguous", "two-batch") / _prefill("even", "two-batch"),
    ),
    "E09": (
        "prefill EP32, EPLB on over off, throughput",
        _value,
        lambda: _prefill("contiguous", "sequential") / _prefill("eplb", "sequential"),
    ),
    "E10": (
        "decode EP72, EPLB on over off, throughput",
        _value,
        lambda: _decode(256, "contiguous", "sequential") / _decode(256, "eplb", "sequential"),
    ),
    "E11": (
        "prefill EP32, two batches over one, throughput",
        _value,
        lambda: _prefill("eplb", "sequential") / _prefill("eplb", "two-batch"),
    ),
    "E12": (
        "decode EP72, batch 256, two batches over one, throughput",
        _value,
        lambda: _decode(256, "eplb", "sequential") / _decode(256, "eplb", "two-batch"),
    ),
    "E13": (
        "decode EP72, batch 32, two batches over one, throughput",
        _value,
        lambda: _decode(32, "eplb", "sequential") / _decode(32, "eplb", "two-batch"),
    ),
    "E14": (
        "decode EP72, batch 128, context 4000, two batches over one, throughput",
        lambda row: float(row["ratio_vs_baseline"]),
        lambda: _decode(128, "eplb", "sequential", 4000) / _decode(128, "eplb", "two-batch", 4000),
    ),
    "E81": ("idle rank over busy rank at a barrier, time", lambda _: 1.0, _barrier),
}

_THROUGHPUT: Final[dict[str, tuple[str, int, Callable[[], float]]]] = {
    "E02": ("prefill EP32, balanced, two batches", _PREFILL[1], lambda: _prefill("even", "two-batch")),
    "E03": (
        "prefill EP32, balanced, two batches, H800",
        _PREFILL[1],
        lambda: _step_s(4, _PREFILL[1], _PREFILL[2], False, "even", "two-batch", "h800"),
    ),
    "E05": ("decode EP72, batch 256, two batches", 256, lambda: _decode(256, "eplb", "two-batch")),
    "E07": (
        "decode EP128, batch 128, balanced, two batches, H800",
        128,
        lambda: _step_s(16, 128, 4096, True, "even", "two-batch", "h800"),
    ),
    "E14": ("decode EP72, batch 128, context 4000, two batches", 128, lambda: _decode(128, "eplb", "two-batch", 4000)),
}
"""Whole-model tokens a second of rows whose deployment is described: label, tokens of a rank, seconds of its step."""
