"""The verbs migrate and recover: what a move takes, and how much of a re-plan a few moves recover."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.base.errors import InputError, MoesimError
from moesim.base.units import count, show
from moesim.cli import inputs, load, screen
from moesim.cli import options as opt
from moesim.cli.show import show_facts

if TYPE_CHECKING:
    from moesim.placement import Placement
    from moesim.spec import ModelSpec
    from moesim.study.recovery import Recovery


def migrate(
    running: Annotated[Path, typer.Argument(metavar="RUNNING", help="Plan or placement that runs.")],
    planned: Annotated[Path, typer.Argument(metavar="PLANNED", help="Plan or placement that shall run.")],
    topology: opt.Topology,
    model: Annotated[str, typer.Option(metavar="MODEL", help="Model whose experts move: a preset, or a config.json.")],
    ranks: opt.Ranks = None,
    set: opt.Set = None,
    degrade: opt.Degrade = None,
    like: opt.Like = None,
    relabel: Annotated[bool, typer.Option(help="Renumber GPUs that are alike so that the fewest experts move.")] = True,
    staging: Annotated[
        int | None,
        typer.Option(metavar="N", help="Experts a GPU can hold beside its slots. Default: what its memory leaves."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the migration schedule here.")
    ] = None,
    reached: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the placement in which it ends here, as JSON.")
    ] = None,
    json: opt.Json = False,
) -> None:
    """Say what it takes to get from one placement to another, and write the copies in the order to make them."""
    load.writable(output, reached)
    from moesim.placement.formats.schedule import write_schedule
    from moesim.placement.rounds import schedule
    from moesim.solve.budget import widened
    from moesim.solve.limits import holders
    from moesim.solve.moving import price
    from moesim.solve.relabel import relabel as renumber
    from moesim.solve.terms import steps_of_move
    from moesim.spec import ModelSpec

    group = load.group(topology, ranks, set, None, like, degrade)
    spec = ModelSpec.find(model)
    was, wanted = (_placement(path, group.ranks, spec) for path in (running, planned))
    for path, one in ((running, was), (planned, wanted)):
        if one.ranks != group.ranks:
            raise InputError(
                f"{path}: is for {count(one.ranks, 'rank')}, {group.name} has {group.ranks}; give its cluster, or take "
                "as many with --ranks"
            )
    if (was.layers, was.num_experts) != (wanted.layers, wanted.num_experts):
        raise InputError(
            f"{planned}: has {count(wanted.layers, 'layer')} of {count(wanted.num_experts, 'expert')}, {running} "
            f"{was.layers} of {was.num_experts}; give placements of one model"
        )
    before = was.experts
    if wanted.slots_per_rank > was.slots_per_rank:
        before = widened(before, wanted.slots_per_rank)
        screen.say(
            f"note: ranks have {count(was.slots_per_rank, 'slot')} now and {wanted.slots_per_rank} then; the new ones "
            "are empty"
        )
    if relabel:
        experts = renumber(wanted.experts, holders(before, was.num_experts), group)
        wanted = dataclasses.replace(wanted, experts=experts)
    if staging is None:
        steps = steps_of_move(before, wanted, spec, group)
    else:
        steps = schedule(before, wanted, group.node, staging)
    if (was.layers, was.num_experts) != (spec.layers, spec.experts):
        screen.say(
            f"note: these are placements of {count(was.layers, 'layer')} of {count(was.num_experts, 'expert')}, "
            f"{spec.name} has {spec.layers} of {spec.experts}: only sizes of weights are its own"
        )
    if output is not None:
        write_schedule(steps, output)
        screen.say(f"wrote {output}")
    if reached is not None:
        dataclasses.replace(wanted, experts=steps.run(before)).write(reached)
        screen.say(f"wrote {reached}")
    show_facts(price(steps, group, spec.expert_bytes).to_dict(), json)


def _placement(path: Path, ranks: int, spec: ModelSpec) -> Placement:
    """Read a plan or placement; the model is asked only where the file does not say enough, else it may be another."""
    try:
        return load.placement_of(load.plan_or_placement(path, ranks=ranks))
    except MoesimError:
        return load.placement_of(load.plan_or_placement(path, ranks=ranks, spec=spec))


def recover(
    trace: opt.TraceFile,
    topology: opt.Topology,
    share: Annotated[
        float, typer.Option(metavar="SHARE", help="Part of the later traffic that is of other domains.")
    ] = 0.5,
    moves: Annotated[str, typer.Option(metavar="N,N,...", help="Moves a layer that are tried.")] = "4,8,16,32",
    slots_per_rank: opt.SlotsPerRank = None,
    policy: opt.Policy = opt.DEFAULT_POLICY,
    transport: opt.Transport = None,
    ranks: opt.Ranks = None,
    set: opt.Set = None,
    without: opt.Without = None,
    degrade: opt.Degrade = None,
    like: opt.Like = None,
    dims: opt.Dims = None,
    phase: opt.Phase = None,
    tokens_per_rank: opt.TokensPerRank = None,
    seed: opt.Seed = 0,
    deadline: opt.Deadline = 60.0,
    format: opt.Format = None,
    model: opt.Model = None,
    format_option: opt.FormatOption = None,
    json: opt.Json = False,
) -> None:
    """Let the traffic drift to other domains, and say how much of a re-plan a few moves recover."""
    budgets = load.numbers("--moves", moves)
    from moesim.study.recovery import recover as run

    given = inputs.read(
        trace, topology, format=format, model=model, format_option=format_option, ranks=ranks, set=set,
        without=without, degrade=degrade, like=like, dims=dims,
    )  # fmt: skip
    with screen.progress() as say:
        found = run(
            given.routing, given.group, slots_per_rank=given.slots(slots_per_rank), share=share, budgets=budgets,
            policy=policy, transport=transport, dims=given.dims, tokens_per_rank=tokens_per_rank, phase=phase,
            seed=seed, deadline_s=deadline, progress=say,
        )  # fmt: skip
    if json:
        screen.print_json(found.to_dict())
    else:
        print_recovery(found)


def print_recovery(found: Recovery) -> None:
    """Print the rows from staying to a whole re-plan."""
    facts = found.facts
    title = (
        f"{facts['model']} on {facts['topology']}: {facts['drifted']:.0%} of the later traffic is of other domains; "
        f"{count(facts['slots_per_rank'], 'slot')} a rank, policy {facts['policy']}"
    )
    columns = (
        "moves a layer",
        "experts moved",
        "bytes",
        "move",
        "step",
        "balance",
        "of the gain",
        "of the balance",
        "break-even",
    )
    rows: list[list[Any]] = []
    for row in found.rows:
        name = "stay" if row.moves == 0 else ("re-plan" if row.moves is None else f"at most {row.moves}")
        even = "-" if row.break_even_s is None else show(row.break_even_s, "time")
        rows.append(
            [name, f"up to {row.most_moves_of_a_layer}", show(row.move_bytes, "bytes"), show(row.move_s, "time"),
             show(row.step_s, "time"), f"{row.balance:.3f}", _part(row.recovered), _part(row.balance_recovered), even]
        )  # fmt: skip
    screen.print_table(columns, rows, title=title)
    if found.rows[-1].recovered is None:
        screen.stdout().print(
            "the re-plan gains nothing on held-out traffic: there is nothing to recover", markup=False, soft_wrap=True
        )
    screen.print_notes(facts["notes"])


def _part(recovered: float | None) -> str:
    return "-" if recovered is None else f"{recovered:.0%}"
