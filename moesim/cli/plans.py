"""The verbs solve, simulate and compare."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.base.errors import InputError
from moesim.base.units import count, show
from moesim.cli import inputs, load, pieces, screen, terms
from moesim.cli import options as opt
from moesim.cli.plan_facts import plan_facts
from moesim.cli.show import show_facts

if TYPE_CHECKING:
    from moesim.study import Comparison


def solve(
    trace: opt.TraceFile,
    topology: opt.Topology,
    solver: Annotated[str, typer.Option(metavar="NAME", help="Solver.")] = "moesim",
    slots_per_rank: opt.SlotsPerRank = None,
    policy: opt.Policy = opt.DEFAULT_POLICY,
    transport: opt.Transport = None,
    network: opt.Network = opt.DEFAULT_NETWORK,
    compute: opt.Compute = opt.DEFAULT_COMPUTE,
    part: opt.Part = "all",
    fit: opt.PartFit = None,
    ranks: opt.Ranks = None,
    set: opt.Set = None,
    without: opt.Without = None,
    degrade: opt.Degrade = None,
    like: opt.Like = None,
    dims: opt.Dims = None,
    phase: opt.Phase = None,
    tokens_per_rank: opt.TokensPerRank = None,
    steps: opt.Steps = None,
    seed: opt.Seed = 0,
    deadline: opt.Deadline = 60.0,
    objective: terms.Aim = "time",
    risk: terms.Risk = "mean",
    worst: terms.Worst = 0.25,
    unseen: terms.Unseen = None,
    windows: terms.Windows = "time",
    rank_slots: terms.RankSlots = None,
    slot_budget: terms.SlotBudget = None,
    hot: terms.Hot = 0,
    hot_nodes: terms.HotNodes = 2,
    hot_mode: terms.HotMode = "hard",
    hot_price: terms.HotPrice = 0.01,
    previous: terms.Previous = None,
    most_moves: terms.MostMoves = None,
    most_bytes: terms.MostBytes = None,
    horizon: terms.Horizon = None,
    migration: terms.ScheduleFile = None,
    format: opt.Format = None,
    model: opt.Model = None,
    format_option: opt.FormatOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the plan here.")] = None,
    json: opt.Json = False,
) -> None:
    """Place the experts of TRACE on a cluster and print what that is worth."""
    load.writable(output, migration)
    from moesim.solve import solve as run

    aim = terms.objective(objective, risk, worst, unseen)
    horizon_s = terms.seconds(horizon)
    if migration is not None and previous is None:
        raise InputError("--migration: there is nothing to move from; give the placement that runs with --previous")

    given = inputs.read(
        trace, topology, format=format, model=model, format_option=format_option, ranks=ranks, set=set,
        without=without, degrade=degrade, like=like, dims=dims,
    )  # fmt: skip
    slots, (running, _) = given.slots(slots_per_rank), given.running(previous)
    limits = terms.constraints(
        given.group, given.priced, slots, rank_slots=rank_slots, slot_budget=slot_budget, hot=hot, hot_nodes=hot_nodes,
        hot_mode=hot_mode, hot_price=hot_price, most_moves=most_moves, most_bytes=most_bytes,
    )  # fmt: skip
    with screen.progress() as say:
        say("packing steps")
        cut = given.windows(
            windows, part=part, fit=fit, tokens_per_rank=tokens_per_rank, phase=phase, max_steps=steps, seed=seed
        )
        costs = given.costs(cut[0], transport=transport, network=network, compute=compute)
        say(f"planning with {solver}")
        plan = run(
            cut, given.group, slots_per_rank=slots, solver=solver, policy=policy, transport=costs.transport,
            dims=given.dims, costs=costs, objective=aim, constraints=limits, previous=running, horizon_s=horizon_s,
            seed=seed, deadline_s=deadline,
        )  # fmt: skip
    if migration is not None and running is not None:
        terms.write_move(plan, running, given.group, migration, costs.spec)
        screen.say(f"wrote {migration}")
    if output is not None:
        plan.write(output)
        screen.say(f"wrote {output}")
    show_facts(plan_facts(plan, every_layer=json), json)


def simulate(
    trace: opt.TraceFile,
    topology: opt.Topology,
    plan: Annotated[
        Path, typer.Option("--plan", "-p", metavar="FILE", help="Plan of `moesim solve`, or a placement in any format.")
    ],
    policy: Annotated[str | None, typer.Option(metavar="NAME", help="Dispatch policy. Default: the plan's.")] = None,
    transport: Annotated[str | None, typer.Option(metavar="NAME", help="Transport. Default: the plan's.")] = None,
    network: opt.Network = opt.DEFAULT_NETWORK,
    compute: opt.Compute = opt.DEFAULT_COMPUTE,
    schedule: Annotated[
        str | None, typer.Option(metavar="NAME", help="How phases share streams. Default: one after the other.")
    ] = None,
    part: opt.Part = "all",
    fit: opt.PartFit = None,
    ranks: opt.Ranks = None,
    set: opt.Set = None,
    without: opt.Without = None,
    degrade: opt.Degrade = None,
    like: opt.Like = None,
    dims: opt.Dims = None,
    phase: opt.Phase = None,
    tokens_per_rank: opt.TokensPerRank = None,
    steps: opt.Steps = None,
    seed: opt.Seed = 0,
    format: opt.Format = None,
    model: opt.Model = None,
    format_option: opt.FormatOption = None,
    jitter: Annotated[
        float, typer.Option(metavar="CV", help="Seeded noise on compute times: coefficient of variation, 0 to 1.")
    ] = 0.0,
    attention_tp: Annotated[
        int, typer.Option(metavar="N", help="Consecutive ranks that share attention (tensor parallel).", min=1)
    ] = 1,
    training: Annotated[bool, typer.Option("--training", help="Add the backward pass to every step.")] = False,
    capacity_factor: Annotated[
        float | None,
        typer.Option(metavar="X", help="With --training: experts take so many times their even share, the rest drops."),
    ] = None,
    drop: Annotated[
        str, typer.Option(metavar="RULE", help="Who is dropped beyond capacity: position or probs.")
    ] = "position",
    at_a_time: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=1,
            help="Read a trace file in pieces of so many tokens, where memory does not hold it.",
        ),
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the timeline of the first step, for ui.perfetto.dev.")
    ] = None,
    chakra: Annotated[
        Path | None,
        typer.Option(metavar="PREFIX", help="Write the first step for ASTRA-sim: Chakra traces PREFIX.RANK.et."),
    ] = None,
    json: opt.Json = False,
) -> None:
    """Simulate steps of TRACE under a plan.

    [bold]--part held-out[/bold] with the [bold]--fit[/bold], [bold]--seed[/bold] and step options of a comparison
    gives the numbers of its table again, to the last digit.
    """
    if at_a_time is not None:
        pieces.refuse({
            "--part": part != "all", "--steps": steps, "--timeline": timeline, "--chakra": chakra,
            "--format": format not in (None, "parquet"), "--model": model, "--format-option": format_option,
        })  # fmt: skip
    load.writable(timeline)
    load.writable(chakra)
    if chakra is not None and training:
        raise InputError("--chakra: the backward pass is not written; leave --training out")
    from moesim.simulate import Training, write_chrome_trace
    from moesim.simulate import simulate as run
    from moesim.solve.bounds import step_bound

    if capacity_factor is not None and not training:
        raise InputError("--capacity-factor: tokens are dropped in training only; give --training as well")
    train = Training(capacity_factor, drop) if training else None  # type: ignore[arg-type]  # checked by Training
    given = inputs.read(
        trace, topology, format=format, model=model, format_option=format_option, ranks=ranks, set=set,
        without=without, degrade=degrade, like=like, dims=dims, head=at_a_time is not None,
    )  # fmt: skip
    judged, group = given.plan(plan), given.group
    how, slots = inputs.manner(judged, policy, transport), load.placement_of(judged).slots_per_rank
    # the bound is that of phases one after the other of inference; a schedule that overlaps them may be faster
    bounded = schedule is None and train is None and not jitter
    bound_s: float | None = None
    with screen.progress() as say:
        if at_a_time is not None:
            report, bound_s = pieces.simulated(
                trace, given, judged, how, at_a_time, phase=phase, tokens_per_rank=tokens_per_rank, network=network,
                compute=compute, attention_tp=attention_tp, bounded=bounded, slots=slots, say=say, schedule=schedule,
                seed=seed, jitter=jitter, training=train,
            )  # fmt: skip
        else:
            say("packing steps")
            batches = given.steps(
                part=part, fit=fit, tokens_per_rank=tokens_per_rank, phase=phase, max_steps=steps, seed=seed
            )
            costs = given.costs(batches, transport=how.transport, network=network, compute=compute)
            costs = dataclasses.replace(costs, attention_tp=attention_tp)
            say(f"simulating {count(len(batches), 'step')}")
            report = run(
                batches, group, judged, policy=how.policy, dims=given.dims, costs=costs, schedule=schedule, seed=seed,
                spans=() if timeline is None else (0,), jitter=jitter, training=train,
            )  # fmt: skip
            bound_s = step_bound(batches, group, costs, slots).step_s if bounded else None
        if timeline is not None:
            write_chrome_trace(report, timeline)
        if chakra is not None:
            from moesim.simulate.chakra import write_chakra

            say("writing Chakra traces")
            write_chakra(batches, group, judged, chakra, policy=how.policy, dims=given.dims, costs=costs, seed=seed)
    if chakra is not None:
        screen.say(f"wrote {chakra}.0.et ... {chakra}.{group.ranks - 1}.et")
    if timeline is not None:
        screen.say(f"wrote {timeline}")
    gap = None if bound_s is None else report.mean_step_s / bound_s - 1
    if json:
        screen.print_json({**report.to_dict(), "bound_s": bound_s, "gap": gap})
        return
    lines = [report.summary()]
    if bound_s is not None:
        lines.append(f"no placement of {count(slots, 'slot')} a rank beats {show(bound_s, 'time')}: {gap:.1%} above it")
    screen.stdout().print("\n".join(lines), markup=False, soft_wrap=True)


def compare(
    context: typer.Context,
    trace: opt.TraceFile,
    topology: opt.Topology,
    solver: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Solvers. Default: the baselines and moesim.")
    ] = None,
    slots_per_rank: opt.SlotsPerRank = None,
    policy: opt.Policy = opt.DEFAULT_POLICY,
    transport: opt.Transport = None,
    network: opt.Network = opt.DEFAULT_NETWORK,
    compute: opt.Compute = opt.DEFAULT_COMPUTE,
    fit: opt.Fit = 0.5,
    held_out: Annotated[
        Path | None,
        typer.Option(metavar="TRACE", help="Other traffic to judge on; plans are then fitted on all of the first."),
    ] = None,
    ranks: opt.Ranks = None,
    set: opt.Set = None,
    without: opt.Without = None,
    degrade: opt.Degrade = None,
    like: opt.Like = None,
    dims: opt.Dims = None,
    phase: opt.Phase = None,
    tokens_per_rank: opt.TokensPerRank = None,
    steps: opt.Steps = None,
    seed: opt.Seed = 0,
    deadline: opt.Deadline = 60.0,
    format: opt.Format = None,
    model: opt.Model = None,
    format_option: opt.FormatOption = None,
    objective: terms.Aim = "time",
    risk: terms.Risk = "mean",
    worst: terms.Worst = 0.25,
    unseen: terms.Unseen = None,
    windows: terms.Windows = "time",
    regret: Annotated[
        bool,
        typer.Option("--regret", help="Tell how far each plan is from one that had seen the held-out steps."),
    ] = False,
    rank_slots: terms.RankSlots = None,
    slot_budget: terms.SlotBudget = None,
    hot: terms.Hot = 0,
    hot_nodes: terms.HotNodes = 2,
    hot_mode: terms.HotMode = "hard",
    hot_price: terms.HotPrice = 0.01,
    previous: terms.Previous = None,
    most_moves: terms.MostMoves = None,
    most_bytes: terms.MostBytes = None,
    horizon: terms.Horizon = None,
    save_plans: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the plan of every solver here, as SOLVER.json.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write an HTML report here.")
    ] = None,
    json: opt.Json = False,
) -> None:
    """Plan with every solver on one part of TRACE and judge the plans on the rest."""
    load.writable(output)
    load.folder(save_plans)
    from moesim.study import DEFAULT_SOLVERS
    from moesim.study import compare as run

    given = inputs.read(
        trace, topology, format=format, model=model, format_option=format_option, ranks=ranks, set=set,
        without=without, degrade=degrade, like=like, dims=dims,
    )  # fmt: skip
    other = None if held_out is None else load.tokens(held_out, format, model, format_option)
    slots, (running, made_on) = given.slots(slots_per_rank), given.running(previous)
    limits = terms.constraints(
        given.group, given.priced, slots, rank_slots=rank_slots, slot_budget=slot_budget, hot=hot, hot_nodes=hot_nodes,
        hot_mode=hot_mode, hot_price=hot_price, most_moves=most_moves, most_bytes=most_bytes,
    )  # fmt: skip
    names = DEFAULT_SOLVERS if solver is None else load.names(solver)
    with screen.progress() as say:
        found = run(
            given.routing, given.group, slots_per_rank=slots,
            solvers=names, policy=policy, transport=transport, network=network, compute=compute,
            fit=fit, held_out=other,
            objective=terms.objective(objective, risk, worst, unseen), constraints=limits, windows=windows,
            previous=running, previous_inputs=made_on, horizon_s=terms.seconds(horizon),
            regret=regret, dims=given.dims,
            tokens_per_rank=tokens_per_rank, phase=phase, max_steps=steps, seed=seed, deadline_s=deadline, progress=say,
        )  # fmt: skip
        if save_plans is not None:
            save_plans.mkdir(exist_ok=True)
            for name, plan in found.plans.items():
                plan.write(save_plans / f"{name}.json")
        if output is not None:
            from moesim.report import write_report

            say("writing the report")
            write_report(found, output, commands=[shlex.join(["moesim", *context.obj])])
    for written in (save_plans, output):
        if written is not None:
            screen.say(f"wrote {written}")
    if json:
        screen.print_json(found.to_dict())
    else:
        print_comparison(found)


def print_comparison(found: Comparison) -> None:
    """Print the table of a comparison, its bound and its notes."""
    from moesim.study.judge import columns

    facts = found.facts
    settings = facts["settings"]
    kind = f"held-out {settings['phase']} step"
    title = (
        f"{settings['model']} on {facts['topology']['name']} ({count(facts['topology']['ranks'], 'GPU')}): mean of "
        f"{count(settings['held_out_steps'], kind)}, {count(settings['slots_per_rank'], 'slot')} a rank"
    )
    table = columns(found.rows)
    rows = [list(cells) for cells in zip(*table.values(), strict=True)]
    console = screen.stdout()
    best = [row.solver for row in found.rows].index(found.best.solver)
    screen.print_table(tuple(table), rows, title=title, bold=best)
    for solver, reason in found.not_run.items():
        console.print(f"{solver}: cannot run here: {reason}", markup=False, soft_wrap=True)
    console.print(
        f"{found.best.solver} is fastest: {show(found.best.step_s, 'time')} a step, "
        f"{found.best.gap:.1%} above the bound of {show(found.bound_s, 'time')} that no placement beats",
        markup=False,
        soft_wrap=True,
    )
    plan = found.plans[found.best.solver]
    windows = "" if found.best.worst_domain is None else ", a window a domain"
    console.print(
        f"on the traffic it was fitted to{windows}: {show(plan.score_s, 'time')}, {plan.gap:.1%} above the bound of "
        f"{show(plan.bound_s, 'time')} there",
        markup=False,
        soft_wrap=True,
    )
    screen.print_notes(found.notes)
