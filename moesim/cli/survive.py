"""The verb survive: what the loss of any GPU or node does to a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from moesim.base.errors import InputError, UnknownName
from moesim.cli import inputs, load, screen
from moesim.cli import options as opt

if TYPE_CHECKING:
    from moesim.solve.survival import Loss, Survival

_ASSUMED: Final = (
    "missing experts are read from host memory at 25 GB/s a GPU (assumed); detection and restart are not counted"
)


def survive(
    trace: opt.TraceFile,
    topology: opt.Topology,
    plan: Annotated[
        Path, typer.Option("--plan", "-p", metavar="FILE", help="Plan of `moesim solve`, or a placement in any format.")
    ],
    lose: Annotated[str, typer.Option(metavar="KINDS", help="What is lost: gpu, node, or both.")] = "gpu,node",
    policy: Annotated[str | None, typer.Option(metavar="NAME", help="Dispatch policy. Default: the plan's.")] = None,
    transport: Annotated[str | None, typer.Option(metavar="NAME", help="Transport. Default: the plan's.")] = None,
    network: opt.Network = opt.DEFAULT_NETWORK,
    compute: opt.Compute = opt.DEFAULT_COMPUTE,
    part: opt.Part = "all",
    fit: opt.PartFit = None,
    ranks: opt.Ranks = None,
    set: opt.Set = None,
    like: opt.Like = None,
    dims: opt.Dims = None,
    phase: opt.Phase = None,
    tokens_per_rank: opt.TokensPerRank = None,
    steps: opt.Steps = 2,
    seed: opt.Seed = 0,
    format: opt.Format = None,
    model: opt.Model = None,
    format_option: opt.FormatOption = None,
    json: opt.Json = False,
) -> None:
    """Say what the loss of any one GPU or node does to a plan: which experts are gone, and what the step then costs."""
    from moesim.solve.survival import KINDS, survival

    kinds = load.names(lose)
    if not kinds:
        raise InputError("--lose: expected gpu, node or both with a comma between them, got nothing")
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownName("kind of loss", kind, KINDS)
    given = inputs.read(
        trace, topology, format=format, model=model, format_option=format_option, ranks=ranks, set=set, like=like,
        dims=dims,
    )  # fmt: skip
    judged = given.plan(plan)
    with screen.progress() as say:
        say("packing steps")
        batches = given.steps(
            part=part, fit=fit, tokens_per_rank=tokens_per_rank, phase=phase, max_steps=steps, seed=seed
        )
        how = inputs.manner(judged, policy, transport)
        costs = given.costs(batches, transport=how.transport, network=network, compute=compute)
        found = survival(
            load.placement_of(judged), batches, costs, policy=how.policy, kinds=kinds, seed=seed, progress=say
        )
    notes = [*batches.notes, *how.notes, *costs.notes, _ASSUMED]
    if json:
        screen.print_json({**found.to_dict(), "notes": notes})
    else:
        print_survival(found)
        screen.print_notes(notes)


def print_survival(found: Survival, most: int = 8) -> None:
    """Print the worst losses of each kind, and how many there are that nobody notices."""
    from moesim.base.units import show

    def cells(loss: Loss) -> list[Any]:
        if loss.step_s is None or loss.slower is None or loss.restore_s is None:
            return [loss.name, loss.experts, f"{loss.picks:.1%}", "never: too few slots", "-", "-"]
        back = show(loss.restore_s, "time") if loss.experts else "at once"
        return [loss.name, loss.experts, f"{loss.picks:.1%}", back, show(loss.step_s, "time"), f"{loss.slower:.2f}x"]

    out = screen.stdout()
    out.print(f"a step now: {show(found.step_s, 'time')}", markup=False)
    for kind in dict.fromkeys(loss.kind for loss in found.losses):
        of = [loss for loss in found.losses if loss.kind == kind]
        worst = sorted(of, key=lambda loss: (loss.step_s is not None, -(loss.step_s or 0)))[:most]
        kept = sum(loss.experts == 0 for loss in of)
        columns = ("lost", "experts gone", "picks", "whole again", "step then", "to now")
        title = f"loss of a {kind}: {kept} of {len(of)} leave every expert reachable; the worst of them"
        screen.print_table(columns, [cells(loss) for loss in worst], title=title)
