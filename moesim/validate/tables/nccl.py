"""NCCL collectives of one node: all-to-all, all-gather and reduce-scatter by message size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from moesim.costs.types import Direction
from moesim.spec import BF16
from moesim.validate.exchange import exchange
from moesim.validate.loads import Counts, mlp_spec
from moesim.validate.machines import machine, system
from moesim.validate.rows import Case, Row, Skip, role_of

COLUMNS = ("system", "op_name", "num_gpus", "size_bytes_total", "latency_us")
_LARGE = 1 << 20
_OPS: dict[str, tuple[str, Direction]] = {
    "alltoall": ("rank-dedup", "combine"),
    "all_gather": ("allgather", "dispatch"),
    "reduce_scatter": ("allgather", "combine"),
}


def collectives(rows: Sequence[Row]) -> Iterator[Case | Skip]:
    """Score each operation that a transport performs; messages of 1 MB and more apart from smaller ones."""
    for row in rows:
        name, op = system(row["system"]), row["op_name"]
        if op not in _OPS:
            yield Skip("nccl_single_node", f"no transport performs {op}")
            continue
        if name is None:
            yield Skip("nccl_single_node", f"no constants of {row['system']}")
            continue
        transport, side = _OPS[op]
        ranks, size = int(row["num_gpus"]), float(row["size_bytes_total"])
        where = machine(name, 1, ranks)
        # every rank holds size / ranks for each rank, itself included; tokens of 16 KB carry it
        spec = mlp_spec(8192, 8192, ranks, 1, BF16, BF16)
        held = spec.combine_token_bytes if side == "combine" else spec.dispatch_token_bytes + 8
        copies = np.full((1, ranks, ranks), size / ranks / held)
        tokens = np.full(ranks, size / ranks / held)
        flow = Counts(copies[..., :1], copies, copies, copies[..., :1], copies, tokens)
        predicted, null = exchange(where, spec, transport, flow, side)
        part = f"nccl_single_node {op} {'>=' if size >= _LARGE else '<'} 1 MB"
        label = f"{row['system']} {op} {ranks} GPUs {size:.0f} B"
        yield Case(part, role_of(row), label, float(row["latency_us"]) * 1e-6, predicted, null)
