"""DeepEP on one node or several, low latency and normal, as NVIDIA's collector measured it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moesim.costs.types import DIRECTIONS
from moesim.spec import FP8_BLOCK
from moesim.validate.exchange import exchange
from moesim.validate.loads import mlp_spec, uniform
from moesim.validate.machines import machine, system
from moesim.validate.rows import Case, Row, Skip, role_of

LOW_LATENCY_COLUMNS = (
    "system",
    "node_num",
    "hidden_size",
    "num_token",
    "num_topk",
    "num_experts",
    "dispatch_avg_t_us",
    "combine_avg_t_us",
)
NORMAL_COLUMNS = (
    "system",
    "node_num",
    "hidden_size",
    "num_token",
    "num_topk",
    "num_experts",
    "dispatch_sms",
    "dispatch_transmit_us",
    "dispatch_notify_us",
    "combine_transmit_us",
    "combine_notify_us",
)


def low_latency(rows: Sequence[Row]) -> Iterator[Case | Skip]:
    """Score every row twice, dispatch and combine; uniform routing, fp8 dispatch, bf16 combine."""
    for row in rows:
        times = [row["dispatch_avg_t_us"], row["combine_avg_t_us"]]
        yield from _score("deepep_ll_single_node", "direct", row, times, 0.0)


def normal(rows: Sequence[Row]) -> Iterator[Case | Skip]:
    """Score every row twice, on as many SMs as the row had."""
    for row in rows:
        times = [_sum(row, side) for side in DIRECTIONS]
        yield from _score("deepep_normal_single_node", "hierarchical", row, times, float(row["dispatch_sms"] or 0))


def _sum(row: Row, side: str) -> str:
    return str(float(row[f"{side}_transmit_us"] or 0) + float(row[f"{side}_notify_us"] or 0))


def _score(table: str, transport: str, row: Row, times: list[str], sms: float) -> Iterator[Case | Skip]:
    name, nodes = system(row["system"]), int(row["node_num"])
    if name is None:
        yield Skip(table, f"no constants of {row['system']}")
        return
    experts, top_k, tokens = (int(row[key]) for key in ("num_experts", "num_topk", "num_token"))
    gpus = int(row.get("gpus_per_node") or 8)
    if experts % (nodes * gpus):
        yield Skip(table, "experts do not divide evenly")
        return
    where = machine(name, nodes, gpus)
    spec = mlp_spec(int(row["hidden_size"]), 2048, experts, top_k, 1.0, FP8_BLOCK)
    groups = 4 if transport == "hierarchical" and nodes > 1 else 0
    flow = uniform(where, experts, top_k, tokens, groups)
    part = table if nodes == 1 else f"{table.removesuffix('_single_node')}_nodes"
    for side, micros in zip(DIRECTIONS, times, strict=True):
        predicted, null = exchange(where, spec, transport, flow, side, sms)
        label = f"{row['system']} EP{nodes * gpus} {side} {tokens} tok h{row['hidden_size']} k{top_k} E{experts}"
        label += f" {sms:.0f} SM" if sms else ""
        yield Case(part, role_of(row), label, float(micros) * 1e-6, predicted, null)
