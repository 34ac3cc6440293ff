"""Benchmark of solvers: fit on one part of the requests, judge on the others, one JSON row per solver and policy."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.errors import InputError
from moesim.base.files import write_text
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.placement import Placement, dispatch
from moesim.solve.objective import load_balance, score
from moesim.solve.planning import solve
from moesim.spec import ModelSpec
from moesim.trace import Trace
from moesim.trace.batching import make_batches

BENCHED: Final = ("contiguous", "lpt", "snake", "eplb", "moesim")
"""Solvers of a benchmark run by default."""
POLICIES_BENCHED: Final = ("nearest", "shares", "token-aware")
"""Dispatch policies of a benchmark run by default."""


def bench(
    trace: Trace,
    cluster: Cluster,
    *,
    slots_per_rank: int,
    solvers: Sequence[str] = BENCHED,
    policies: Sequence[str] = POLICIES_BENCHED,
    transport: str = "hierarchical",
    dims: ModelSpec | None = None,
    tokens_per_rank: int | None = None,
    fit: float = 0.5,
    seed: int = 0,
    deadline_s: float = 60.0,
    jobs: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Return one row per policy and solver, ready for JSON.

    A row holds ``trace``, ``topology``, ``slots`` (of all ranks), ``policy``, ``solver``, ``seed``; ``copies`` (of a
    token to nodes other than its own), ``balance`` (mean over largest load of a rank), both mean over layers, homes
    spread evenly over one batch of everything held out; ``step_s``, mean seconds of a held-out step; ``fitted_step_s``;
    ``wall_s``, seconds of solving, score and bound; ``notes`` of the plan.

    Parameters
    ----------
    fit
        Part of the requests that plans are fitted to; the others judge.
    options
        Options of solvers by name.

    Raises
    ------
    InputError
        If the trace has counts only.
    """
    fitted, held_out = trace.split(fit)
    spec = trace.spec if dims is None else trace.spec.at_dimensions(dims)
    costs = Costs.default(spec, cluster, transport=transport)
    steps = make_batches(held_out, cluster.ranks, tokens_per_rank=tokens_per_rank, seed=seed)
    rows = []
    for policy in policies:
        for solver in solvers:
            began = time.monotonic()
            plan = solve(
                fitted, cluster, slots_per_rank=slots_per_rank, solver=solver, policy=policy, transport=transport,
                dims=dims, tokens_per_rank=tokens_per_rank, seed=seed, deadline_s=deadline_s, jobs=jobs,
                **dict(options or {}).get(solver, {}),
            )  # fmt: skip
            wall_s = time.monotonic() - began
            copies, balance = judged(plan.placement, held_out, cluster, policy, seed)
            rows.append(
                {
                    "trace": trace.spec.name,
                    "topology": cluster.name,
                    "slots": cluster.ranks * slots_per_rank,
                    "policy": policy,
                    "solver": solver,
                    "seed": seed,
                    "copies": copies,
                    "balance": balance,
                    "step_s": score(steps, plan.placement, costs, policy, seed).mean_s,
                    "fitted_step_s": plan.score_s,
                    "wall_s": wall_s,
                    "notes": list(plan.notes),
                }
            )
    return rows


def judged(placement: Placement, trace: Trace, cluster: Cluster, policy: str, seed: int = 0) -> tuple[float, float]:
    """Return copies of a token to other nodes, and mean over largest load of a rank, over all rows of a trace at once.

    Homes are spread evenly.
    """
    home = (np.random.default_rng(seed).permutation(trace.rows) % cluster.ranks).astype(np.int32)
    if trace.routes is None:
        raise InputError("bench: the trace has counts only; copies need the experts of each token")
    flow = dispatch(
        trace.routes, home, placement, cluster.node, cluster.landing, policy=policy, seed=seed,
        want=("slot_tokens", "node_copies"),
    )  # fmt: skip
    away = flow.node_copies.copy()
    away[:, np.arange(cluster.ranks), cluster.node] = 0
    return float(away.sum(axis=(1, 2)).mean() / trace.rows), float(load_balance(flow).mean())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of :func:`bench` as a Markdown table, each solver beside EPLB where that was run."""
    lines = ["| trace | topology | slots | policy | solver | copies | x EPLB | balance | held-out step | seconds |"]
    lines.append("|" + "---|" * 10)
    case = ("trace", "topology", "slots", "policy", "seed")
    eplb = {tuple(row[key] for key in case): row for row in rows if row["solver"] == "eplb"}
    for row in rows:
        base = eplb.get(tuple(row[key] for key in case))
        ratio = f"{row['copies'] / base['copies']:.2f}" if base and base["copies"] else "-"
        lines.append(
            f"| {row['trace']} | {row['topology']} | {row['slots']} | `{row['policy']}` | `{row['solver']}` "
            f"| {row['copies']:.3f} | {ratio} | {row['balance']:.3f} | {row['step_s'] * 1e3:.2f} ms "
            f"| {row['wall_s']:.1f} |"
        )
    return "\n".join(lines)


def write_rows(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write rows as JSON lines."""
    write_text(Path(path), "".join(json.dumps(dict(row)) + "\n" for row in rows))
