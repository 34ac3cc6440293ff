"""The verb advise: one screen that says what would pay here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.base.errors import InputError
from moesim.base.units import count, show
from moesim.cli import inputs, load, screen, terms
from moesim.cli import options as opt

if TYPE_CHECKING:
    from moesim.study.advise import Advice
    from moesim.study.answers import Option


def advise(
    trace: opt.TraceFile,
    topology: opt.Topology,
    slots_per_rank: opt.SlotsPerRank = None,
    previous: terms.Previous = None,
    horizon: Annotated[
        str, typer.Option(metavar="TIME", help='Time of serving in which a move must pay off, "10 min".')
    ] = "10 min",
    policy: opt.Policy = opt.DEFAULT_POLICY,
    transport: opt.Transport = None,
    network: opt.Network = opt.DEFAULT_NETWORK,
    compute: opt.Compute = opt.DEFAULT_COMPUTE,
    fit: opt.Fit = 0.5,
    ranks: opt.Ranks = None,
    set: opt.Set = None,
    without: opt.Without = None,
    degrade: opt.Degrade = None,
    like: opt.Like = None,
    dims: opt.Dims = None,
    phase: opt.Phase = None,
    tokens_per_rank: opt.TokensPerRank = None,
    steps: opt.Steps = 6,
    seed: opt.Seed = 0,
    deadline: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Time that all searches may take together. Compiling, once after an installation, is not counted; "
            "pricing what they try comes on top, and takes minutes where many layers meet large groups.",
        ),
    ] = 25.0,
    format: opt.Format = None,
    model: opt.Model = None,
    format_option: opt.FormatOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write the plan that is advised here; where nothing is, the re-plan."
        ),
    ] = None,
    json: opt.Json = False,
) -> None:
    """Say whether re-placement, more or fewer copies, or another policy would pay here, and by how much.

    All gains are on held-out traffic. "EPLB will not pay here" and "stay with the running placement" are answers.
    """
    load.writable(output)
    from moesim.placement import Placement
    from moesim.study.advise import advise as run

    given = inputs.read(
        trace, topology, format=format, model=model, format_option=format_option, ranks=ranks, set=set,
        without=without, degrade=degrade, like=like, dims=dims,
    )  # fmt: skip
    running, made_on = given.running(previous)
    if isinstance(running, Placement) and slots_per_rank not in (None, running.slots_per_rank):
        raise InputError(
            f"--slots-per-rank: {previous} has {count(running.slots_per_rank, 'slot')} a rank, and one more and one "
            "fewer are tried as well; leave the option out"
        )
    with screen.progress() as say:
        found = run(
            given.routing, given.group, slots_per_rank=given.slots(slots_per_rank), previous=running,
            previous_inputs=made_on, policy=policy, transport=transport, network=network,
            compute=compute, fit=fit, dims=given.dims, tokens_per_rank=tokens_per_rank,
            phase=phase, max_steps=steps, seed=seed, deadline_s=deadline,
            horizon_s=terms.seconds(horizon) or 0.0, progress=say,
        )  # fmt: skip
    if output is not None:
        found.plan.write(output)
        screen.say(f"wrote {output} ({found.advised or 're-plan, though nothing is advised'})")
    if json:
        screen.print_json(found.to_dict())
    else:
        print_advice(found)


def print_advice(found: Advice) -> None:
    """Print the screen: answers first, then what they rest on."""
    settings, now, topology = found.facts["settings"], found.now, found.facts["topology"]
    out = screen.stdout()

    def say(line: str, style: str = "") -> None:
        out.print(line, markup=False, soft_wrap=True, style=style or None)

    say(
        f"{settings['model']} on {topology['name']} ({count(topology['ranks'], 'GPU')}), {settings['phase']}, policy "
        f"{settings['policy']}, {count(settings['slots_per_rank'], 'slot')} a rank; "
        f"{count(settings['held_out_steps'], 'held-out step')}"
    )
    say(
        f"now: {show(now['step_s'], 'time')} a step ({show(now['all_to_all_s'], 'time')} all-to-all, "
        f"{show(now['compute_s'], 'time')} experts), no placement beats {show(now['bound_s'], 'time')}"
    )
    say(f"bottleneck: {now['bottleneck']}")
    out.print()
    for question, answer in found.answers.items():
        say(f"{question + ':':<11}{answer}", "bold")
    say(f"{'regret:':<11}the re-plan takes {found.regret:.1%} longer than a plan that had seen the held-out steps")

    def cells(option: Option) -> list[Any]:
        error = "" if option.gain_error is None else f" ± {option.gain_error:.1%}"
        moves = ["-", "-", "-"]
        if option.move_s is not None:
            even = "never" if option.break_even_s is None else show(option.break_even_s, "time")
            moves = [f"{option.moves:,}", show(option.move_s, "time"), even]
        return [option.name, show(option.step_s, "time"), f"{option.gain:+.1%}{error}", f"{option.balance:.3f}",
                *moves, "yes" if option.pays else "no"]  # fmt: skip

    columns = ("option", "step", "saves", "balance", "moves", "move", "break-even", "pays")
    rows = [cells(option) for option in found.options if option.kind != "policy"]
    screen.print_table(columns, rows)
    by_policy: dict[str, dict[str, Option]] = {}
    for option in found.options:
        if option.kind == "policy":
            by_policy.setdefault(option.policy, {})[option.solver] = option
    table = [
        [name, *(f"{one.gain:+.1%}" for one in where.values()), where["stay"].engine]
        for name, where in by_policy.items()
    ]
    places = list(next(iter(by_policy.values())))
    screen.print_table(("policy", *(f"saves, {place}" for place in places), "who runs it"), table)
    screen.print_notes(found.notes)
