"""The verb bench: measure what the documentation claims, on any trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli import load, screen, terms
from moesim.cli import options as opt

bench = typer.Typer(no_args_is_help=True, help="Measure solvers: on the traffic of a trace, and by load alone.")


@bench.command("solve")
def solve(
    trace: Annotated[
        Path | None,
        typer.Argument(metavar="[TRACE]", help="Traffic. Without it only the fast path is measured, on drawn loads."),
    ] = None,
    topology: Annotated[
        list[str] | None, typer.Option(metavar="NAME|FILE", help="Cluster; repeatable. Default: h100-4x8-rail.")
    ] = None,
    slots_per_rank: opt.SlotsPerRank = None,
    solver: Annotated[
        str, typer.Option(metavar="A,B,C", help="Solvers.")
    ] = "contiguous,lpt,snake,eplb,eplb-hierarchical,moesim",
    policy: Annotated[str, typer.Option(metavar="A,B,C", help="Dispatch policies.")] = "nearest,shares,token-aware",
    transport: opt.Transport = None,
    layers: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Only these MoE layers of the trace, counted from 0.")
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Efforts of moesim, one row each: its curve of score against seconds."),
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="moesim whole, then without each part of its search, one row each.")
    ] = False,
    objective: terms.Aim = "time",
    unseen: terms.Unseen = None,
    scenarios: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Runs of the traffic whose balance moesim averages.")
    ] = None,
    fit: opt.Fit = 0.5,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="What is judged on: other step, request or domain; auto.")
    ] = "auto",
    dims: opt.Dims = None,
    tokens_per_rank: opt.TokensPerRank = None,
    seed: opt.Seed = 0,
    deadline: opt.Deadline = 120.0,
    jobs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads. Default: all cores.")] = None,
    format: opt.Format = None,
    model: opt.Model = None,
    format_option: opt.FormatOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the rows here, one JSON object a line.")
    ] = None,
    json: opt.Json = False,
) -> None:
    """Fit plans on one part of TRACE, judge them on the rest, and print a Markdown table.

    Copies are those of a token to nodes other than its own, balance is mean over largest load of a rank, both on all
    held-out tokens at once with homes spread evenly; "x EPLB" is against the better EPLB under the same policy.
    """
    load.writable(output)
    if trace is None:
        from moesim.solve.fast import fast_path, fast_table

        with screen.progress() as say:
            say("timing the fast path")
            rows, shown = fast_path(seed=seed), fast_table
    else:
        from moesim.solve.bench import bench as run
        from moesim.solve.bench import table as shown

        routing = load.tokens(trace, format, model, format_option)
        if layers is not None:
            routing = routing.of_layers(load.numbers("--layers", layers))
        efforts = None if effort is None else load.numbers("--effort", effort, float)
        aim = terms.objective(objective, unseen=unseen)
        rows = []
        with screen.progress() as say:
            for place in topology or ["h100-4x8-rail"]:
                cluster = load.group(place, None)
                rows += run(
                    routing, cluster, slots_per_rank=load.slots(slots_per_rank, routing, cluster),
                    solvers=load.names(solver), policies=load.names(policy), transport=transport or "hierarchical",
                    dims=load.dims(dims), tokens_per_rank=tokens_per_rank, fit=fit, seed=seed, deadline_s=deadline,
                    jobs=jobs, efforts=efforts, ablate=ablate, by=split, progress=say,
                    objective=aim,
                    options=None if scenarios is None else {"moesim": {"scenarios": scenarios}},
                )  # fmt: skip
    if output is not None:
        from moesim.solve.bench import write_rows

        write_rows(rows, output)
        screen.say(f"wrote {output}")
    if json:
        screen.print_json({"rows": rows})
    else:
        screen.stdout().print(shown(rows), markup=False, soft_wrap=True)
