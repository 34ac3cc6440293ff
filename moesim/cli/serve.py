"""The verb serve: requests arrive, queue, are prefilled and decoded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.base.errors import TooShort
from moesim.base.units import count
from moesim.cli import inputs, load, screen
from moesim.cli import options as opt

if TYPE_CHECKING:
    from moesim.placement import Placement
    from moesim.solve import Plan
    from moesim.study.serving import Serving
    from moesim.trace import Trace

_LOAD, _ENGINE = "Load", "Engine"


def serve(
    trace: opt.TraceFile,
    topology: opt.Topology,
    arrivals: Annotated[
        str,
        typer.Option(
            "--arrivals",
            "-a",
            metavar="FILE|poisson|gamma",
            rich_help_panel=_LOAD,
            help="Requests: a trace of Azure, Mooncake or BurstGPT, or a process.",
        ),
    ],
    rate: Annotated[
        float | None, typer.Option(metavar="N", help="Requests a second of a process.", rich_help_panel=_LOAD)
    ] = None,
    requests: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only so many requests.", rich_help_panel=_LOAD)
    ] = None,
    faster: Annotated[
        float,
        typer.Option(metavar="FACTOR", help="Requests arrive so many times as fast.", rich_help_panel=_LOAD),
    ] = 1.0,
    cv: Annotated[
        float | None, typer.Option(metavar="X", help="Coefficient of variation of gamma gaps.", rich_help_panel=_LOAD)
    ] = None,
    prompt: Annotated[
        int, typer.Option(metavar="TOKENS", min=1, help="Prompt of a process's requests.", rich_help_panel=_LOAD)
    ] = 1024,
    answer: Annotated[
        int, typer.Option(metavar="TOKENS", min=1, help="Answer of a process's requests.", rich_help_panel=_LOAD)
    ] = 128,
    scheduler: Annotated[
        str,
        typer.Option(metavar="NAME", help="round-robin, least-loaded or expert-affinity.", rich_help_panel=_ENGINE),
    ] = "least-loaded",
    prefill_ranks: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=_ENGINE,
            help="Serve prompts on the first N ranks and answers on the others. Default: all do both.",
        ),
    ] = None,
    chunk: Annotated[
        int,
        typer.Option(metavar="TOKENS", min=1, help="Tokens of a rank in a step.", rich_help_panel=_ENGINE),
    ] = 2048,
    running: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests that a rank runs at a time.", rich_help_panel=_ENGINE)
    ] = 256,
    memory_fraction: Annotated[
        float, typer.Option(metavar="X", help="Part of a GPU for weights and KV cache.", rich_help_panel=_ENGINE)
    ] = 0.9,
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Tokens that a rank caches. Default: what fits.", rich_help_panel=_ENGINE
        ),
    ] = None,
    overhead_ms: Annotated[
        float, typer.Option(metavar="MS", min=0, help="What every step takes beside.", rich_help_panel=_ENGINE)
    ] = 0.0,
    exact: Annotated[
        bool, typer.Option("--exact", help="Price every step anew, on all layers: slow.", rich_help_panel=_ENGINE)
    ] = False,
    plan: Annotated[
        Path | None, typer.Option("--plan", "-p", metavar="FILE", help="Plan that runs. Default: of --solver.")
    ] = None,
    solver: Annotated[str, typer.Option(metavar="NAME", help="Solver, where no plan is given.")] = "eplb",
    slots_per_rank: opt.SlotsPerRank = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Dispatch policy. Default: the plan's, else nearest.", rich_help_panel="What runs"
        ),
    ] = None,
    transport: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Transport. Default: the plan's, else direct where answers are made and hierarchical where not.",
            rich_help_panel="What runs",
        ),
    ] = None,
    network: opt.Network = opt.DEFAULT_NETWORK,
    compute: opt.Compute = opt.DEFAULT_COMPUTE,
    fit: opt.Fit = 0.5,
    ranks: opt.Ranks = None,
    set: opt.Set = None,
    without: opt.Without = None,
    degrade: opt.Degrade = None,
    like: opt.Like = None,
    dims: opt.Dims = None,
    slo_ttft: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time to first token of a good request.", rich_help_panel=_LOAD)
    ] = 2.0,
    slo_tpot_ms: Annotated[
        float, typer.Option(metavar="MS", help="Time per output token of a good request.", rich_help_panel=_LOAD)
    ] = 100.0,
    seed: opt.Seed = 0,
    deadline: opt.Deadline = 60.0,
    format: opt.Format = None,
    model: opt.Model = None,
    format_option: opt.FormatOption = None,
    json: opt.Json = False,
) -> None:
    """Serve requests whose tokens are routed as in TRACE: latency, throughput and goodput under load.

    Without a plan, one is made on the part of TRACE that [bold]--fit[/bold] says; tokens are drawn from the rest.
    """
    from moesim.simulate.serving import SCHEDULERS, arrivals_of
    from moesim.study.serving import kv_path, serve_plan
    from moesim.study.windows import part_of

    SCHEDULERS.get(scheduler)  # before plans are made
    read = inputs.read(
        trace, topology, format=format, model=model, format_option=format_option, ranks=ranks, set=set,
        without=without, degrade=degrade, like=like, dims=dims,
    )  # fmt: skip
    arriving = arrivals_of(arrivals, rate=rate, requests=requests, cv=cv, prompt=prompt, output=answer, seed=seed)
    arriving = arriving.faster(faster)
    groups = load.split(read.group, prefill_ranks)
    traffic = read.routing if plan is not None else part_of(read.routing, "held-out", fit=fit, seed=seed)
    runs = inputs.Manner(policy or opt.DEFAULT_POLICY, transport, ())
    if plan is not None:
        judged = dataclasses.replace(read, group=groups[0]).plan(plan)
        runs = inputs.manner(judged, policy, transport)
        runs = runs._replace(notes=(*runs.notes, _seen(judged, read.routing)))
    how: dict[str, Any] = {
        "slots": slots_per_rank, "policy": runs.policy, "transport": runs.transport, "network": network,
        "compute": compute, "plan": plan, "solver": solver, "fit": fit, "seed": seed, "deadline": deadline,
    }  # fmt: skip
    limits = {"tokens": chunk, "requests": running, "memory_fraction": memory_fraction, "kv_tokens": kv_tokens}
    with screen.progress() as say:
        parts: list[Serving] = []
        for number, group in enumerate(groups):
            decode = number == 1 or len(groups) == 1
            say(f"planning {count(group.ranks, 'rank')}")
            parts.append(_serving(dataclasses.replace(read, group=group), decode=decode, limits=limits, **how))
        say(f"serving {count(len(arriving), 'request')}")
        report = serve_plan(
            traffic, arriving, parts[0], decode=parts[1] if len(parts) > 1 else None,
            path=kv_path(read.group, groups[0].ranks) if len(parts) > 1 else None, dims=read.dims, scheduler=scheduler,
            overhead_s=overhead_ms / 1e3, exact=exact, slo_ttft_s=slo_ttft, slo_tpot_s=slo_tpot_ms / 1e3, seed=seed,
        )  # fmt: skip
    report = dataclasses.replace(report, notes=(*report.notes, *runs.notes))
    if json:
        screen.print_json(report.to_dict())
        return
    screen.stdout().print(report.summary(), markup=False, soft_wrap=True)
    screen.print_notes(report.notes)


def _seen(judged: Plan | Placement, routing: Trace) -> str:
    """Return what is known of whether a plan has seen the tokens that are served, which are of the whole trace."""
    known = getattr(judged, "inputs", {})
    if "trace" not in known:
        return "what the placement was fitted on is not known: it may have seen the tokens that are served"
    if known["trace"] != routing.digest and known.get("origin") != routing.origin_digest:
        return "the plan was fitted on another trace"
    return "the plan was fitted on this trace: tokens that it has seen are served as well; serve another part of it"


def _serving(
    given: inputs.Inputs, *, decode: bool, limits: dict[str, Any], slots: int | None,
    policy: str, transport: str | None, network: str, compute: str, plan: Path | None, solver: str, fit: float,
    seed: int, deadline: float,
) -> Serving:  # fmt: skip
    from moesim.solve import solve
    from moesim.study.serving import Serving
    from moesim.study.windows import part_of
    from moesim.trace import DECODE, PHASES, PREFILL

    wanted = DECODE if decode else PREFILL
    # a part may hold one phase alone although the trace holds both
    given = dataclasses.replace(given, routing=part_of(given.routing, "fit", fit=fit, seed=seed))
    phase = PHASES[wanted] if (given.routing.phase == wanted).any() else None
    try:
        batches = given.steps(part="all", fit=None, tokens_per_rank=None, phase=phase, max_steps=None, seed=seed)
    except TooShort as error:
        # steps that are planned on have their usual size here, whatever --chunk the engine has
        raise TooShort(
            error.problem, "give a longer trace, fewer --ranks, or more of the trace to plan on (--fit)"
        ) from None
    costs = given.costs(batches, transport=transport, network=network, compute=compute)
    if plan is not None:
        placement = load.placement_of(given.plan(plan))
    else:
        placement = solve(
            batches, given.group, slots_per_rank=given.slots(slots), solver=solver, policy=policy, dims=given.dims,
            costs=costs, transport=costs.transport, seed=seed, deadline_s=deadline,
        ).placement  # fmt: skip
    return Serving(given.group, placement, policy, costs, **limits)
