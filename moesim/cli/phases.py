"""The verb phases: plans for prefill and decode side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.base.errors import InputError, UnknownName
from moesim.base.units import count, show
from moesim.cli import inputs, load, screen
from moesim.cli import options as opt

if TYPE_CHECKING:
    from moesim.study.phases import Phases


def phases(
    trace: opt.TraceFile,
    topology: opt.Topology,
    slots_per_rank: opt.SlotsPerRank = None,
    policy: Annotated[
        str, typer.Option(metavar="NAME|PHASE=NAME,...", help="Dispatch policy, of all phases or by phase.")
    ] = opt.DEFAULT_POLICY,
    tokens_per_rank: Annotated[
        str | None, typer.Option(metavar="PHASE=N,...", help="Tokens of a rank in a step, by phase. Default: as usual.")
    ] = None,
    fit: opt.Fit = 0.5,
    ranks: opt.Ranks = None,
    set: opt.Set = None,
    without: opt.Without = None,
    degrade: opt.Degrade = None,
    like: opt.Like = None,
    dims: opt.Dims = None,
    steps: opt.Steps = None,
    seed: opt.Seed = 0,
    deadline: opt.Deadline = 60.0,
    format: opt.Format = None,
    model: opt.Model = None,
    format_option: opt.FormatOption = None,
    save_plans: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the plan of every phase here, as PHASE.json.")
    ] = None,
    json: opt.Json = False,
) -> None:
    """Plan for prefill and for decode, and say what the plan of one costs in the other."""
    load.folder(save_plans)
    runs = _by_phase("--policy", policy) if "=" in policy else None
    size = None if tokens_per_rank is None else _by_phase("--tokens-per-rank", tokens_per_rank)
    if size is not None and not all(value.isdecimal() for value in size.values()):
        raise InputError(f"--tokens-per-rank: expected PHASE=N such as decode=64, got {tokens_per_rank!r}")
    from moesim.study.phases import side_by_side
    from moesim.trace import PHASES

    given = inputs.read(
        trace, topology, format=format, model=model, format_option=format_option, ranks=ranks, set=set,
        without=without, degrade=degrade, like=like, dims=dims,
    )  # fmt: skip
    with screen.progress() as say:
        found = side_by_side(
            given.routing, given.group, slots_per_rank=given.slots(slots_per_rank),
            policies=dict.fromkeys(PHASES, policy) if runs is None else runs,
            tokens_per_rank=None if size is None else {name: int(value) for name, value in size.items()},
            dims=given.dims, fit=fit, max_steps=steps, seed=seed, deadline_s=deadline, progress=say,
        )  # fmt: skip
    if save_plans is not None:
        save_plans.mkdir(exist_ok=True)
        for name, plan in found.plans.items():
            plan.write(save_plans / f"{name}.json")
        screen.say(f"wrote {save_plans}")
    if json:
        screen.print_json(found.to_dict())
    else:
        print_phases(found)


def _by_phase(option: str, text: str) -> dict[str, str]:
    from moesim.trace import PHASES

    found = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not (equals and value):
            raise InputError(f"{option}: expected PHASE=VALUE,..., got {text!r}")
        if name not in PHASES:
            raise UnknownName("phase", name, PHASES)
        if name in found:
            raise InputError(f"{option}: {name} is given twice, got {text!r}")
        found[name] = value
    return found


def print_phases(found: Phases) -> None:
    """Print every phase under every plan."""
    facts = found.facts
    title = f"{facts['model']} on {facts['topology']}, {count(facts['slots_per_rank'], 'slot')} a rank: held-out steps"
    rows = [
        [row.phase, row.plan, row.policy, row.transport, row.tokens_per_rank or "as recorded", show(row.step_s, "time"),
         f"{row.slower:+.1%}", f"{row.balance:.3f}"]
        for row in found.rows
    ]  # fmt: skip
    screen.print_table(
        ("phase", "planned for", "policy", "transport", "tokens a rank", "step", "to its own plan", "balance"), rows,
        title=title,
    )  # fmt: skip
    for name, moves in found.moves.items():
        screen.stdout().print(
            f"the plan for {name} has {count(moves, 'expert')} on other GPUs than the first", markup=False
        )
    screen.print_notes(found.notes)
