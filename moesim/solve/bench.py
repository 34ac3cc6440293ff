"""Benchmark of solvers: fit on one part of the requests, judge on the others, one JSON row per solver and policy."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.errors import InputError
from moesim.base.files import write_text
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.placement import Placement, dispatch
from moesim.solve.objective import Objective, load_balance, score
from moesim.solve.planning import solve
from moesim.spec import ModelSpec
from moesim.trace import Trace
from moesim.trace.batching import make_batches

BENCHED: Final = ("contiguous", "lpt", "snake", "eplb", "eplb-hierarchical", "moesim")
"""Solvers of a benchmark run by default."""
POLICIES_BENCHED: Final = ("nearest", "shares", "token-aware")
"""Dispatch policies of a benchmark run by default."""
ABLATIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "moesim": {},
    "moesim, no annealing": {"effort": 0.0},
    "moesim, nearest copies only": {"cover": 0.0},
    "moesim, one scenario": {"scenarios": 1},
    "moesim, no floor under balance": {"floor": 0.0},
    "moesim, a quarter of the rows": {"rows": 3000},
}
"""What parts of the search are worth: names of rows, and options that leave one out."""


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
    by: str = "auto",
    objective: Objective | None = None,
    seed: int = 0,
    deadline_s: float = 60.0,
    jobs: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    efforts: Sequence[float] | None = None,
    ablate: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Return one row per policy and solver, ready for JSON.

    A row holds ``trace``, ``topology``, ``slots`` (of all ranks), ``policy``, ``solver``, ``seed``; ``copies`` (of a
    token to nodes other than its own), ``balance`` (mean over largest load of a rank), both mean over layers, homes
    spread evenly over one batch of everything held out; ``step_s``, mean seconds of a held-out step; ``fitted_step_s``;
    ``wall_s`` and ``cpu_s``, seconds of solving, score and bound; ``gap`` of the plan on what it was fitted to;
    ``cut``, whether the clock ended the search before its effort was spent; ``notes`` of the plan.
    A hierarchical EPLB that does not divide is left out.

    Parameters
    ----------
    fit
        Part of the traffic that plans are fitted to; the rest judges.
    by
        What is kept whole in that: see :meth:`moesim.trace.Trace.split`. ``"domain"`` judges on domains never seen.
    objective
        What ``moesim`` makes small.
    options
        Options of solvers by name.
    efforts
        Efforts of ``moesim``, one row each, called ``moesim 1e+07`` and so on; its default only, if None.
    ablate
        Run ``moesim`` once whole and once without each part of its search, see :data:`ABLATIONS`.
    progress
        Told what runs.

    Raises
    ------
    InputError
        If the trace has counts only.
    """
    fitted, held_out = trace.split(fit, by=by, seed=seed)
    spec = trace.spec if dims is None else trace.spec.at_dimensions(dims)
    costs = Costs.default(spec, cluster, transport=transport)
    steps = make_batches(held_out, cluster.ranks, tokens_per_rank=tokens_per_rank, seed=seed)
    rows = []
    say = progress or (lambda _line: None)
    given = dict(options or {})
    for policy in policies:
        for solver, label, extra in _runs(solvers, given, efforts, ablate):
            say(f"{cluster.name}, {policy}: {label}")
            began, busy = time.monotonic(), time.process_time()
            try:
                plan = solve(
                    fitted, cluster, slots_per_rank=slots_per_rank, solver=solver, policy=policy, transport=transport,
                    dims=dims, tokens_per_rank=tokens_per_rank, seed=seed, deadline_s=deadline_s, jobs=jobs,
                    objective=objective if solver == "moesim" else None, **extra,
                )  # fmt: skip
            except InputError:
                if solver != "eplb-hierarchical":
                    raise
                continue
            wall_s, cpu_s = time.monotonic() - began, time.process_time() - busy
            copies, balance = judged(plan.placement, held_out, cluster, policy, seed)
            rows.append(
                {
                    "trace": trace.spec.name,
                    "topology": cluster.name,
                    "slots": cluster.ranks * slots_per_rank,
                    "policy": policy,
                    "solver": label,
                    "seed": seed,
                    "copies": copies,
                    "balance": balance,
                    "step_s": score(steps, plan.placement, costs, policy, seed).mean_s,
                    "fitted_step_s": plan.score_s,
                    "gap": plan.gap if np.isfinite(plan.gap) else None,
                    "wall_s": wall_s,
                    "cpu_s": cpu_s,
                    "cut": any(note.startswith("the deadline ") for note in plan.notes),
                    "notes": list(plan.notes),
                }
            )
    return rows


def _runs(
    solvers: Sequence[str], options: Mapping[str, Mapping[str, Any]], efforts: Sequence[float] | None, ablate: bool
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield solver, label and options of every run."""
    for solver in solvers:
        extra = dict(options.get(solver, {}))
        if solver == "moesim" and efforts is not None:
            for effort in efforts:
                yield solver, f"moesim {effort:g}", {**extra, "effort": effort}
        elif solver == "moesim" and ablate:
            for label, without in ABLATIONS.items():
                yield solver, label, {**extra, **without}
        else:
            yield solver, solver, extra


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
    """Return rows of :func:`bench` as a Markdown table, each beside the better EPLB where one was run.

    Rows whose search the clock cut short say so: their numbers depend on how busy the machine was.
    """
    lines = ["| trace | topology | slots | policy | solver | copies | x EPLB | balance | held-out step | CPU s |"]
    lines.append("|" + "---|" * 10)
    case = ("trace", "topology", "slots", "policy", "seed")
    eplb: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row["solver"] in ("eplb", "eplb-hierarchical"):
            key = tuple(row[name] for name in case)
            eplb[key] = min(row["copies"], eplb.get(key, np.inf))
    for row in rows:
        base = eplb.get(tuple(row[key] for key in case))
        ratio = f"{row['copies'] / base:.2f}" if base else "-"
        lines.append(
            f"| {row['trace']} | {row['topology']} | {row['slots']} | `{row['policy']}` | {_called(row)} "
            f"| {row['copies']:.3f} | {ratio} | {row['balance']:.3f} | {row['step_s'] * 1e3:.2f} ms "
            f"| {row['cpu_s']:.1f} |"
        )
    return "\n".join(lines)


def _called(row: Mapping[str, Any]) -> str:
    solver, *rest = str(row["solver"]).split(", ", 1)
    return ", ".join([f"`{solver}`", *rest]) + (" (cut by the clock)" if row.get("cut") else "")


def write_rows(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write rows as JSON lines."""
    write_text(Path(path), "".join(json.dumps(dict(row)) + "\n" for row in rows))
