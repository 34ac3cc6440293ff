"""The verb demo: the whole river on the bundled trace, with one command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Final

import typer

import moesim
from moesim.base.errors import InputError
from moesim.cli import load, screen
from moesim.cli import options as opt

FIT: Final = "bundled-moe-fit.parquet"
HELD_OUT: Final = "bundled-moe-eval.parquet"
TOPOLOGY: Final = "h100-4x8-rail"
DIMS: Final = "deepseek-v3"


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the report, the plan and the maps.")
    ] = Path("out/demo"),
    topology: opt.Topology = TOPOLOGY,
    slots_per_rank: opt.SlotsPerRank = None,
    dims: Annotated[str, typer.Option(metavar="PRESET", help="Replay the routing at these dimensions.")] = DIMS,
    phase: Annotated[str, typer.Option(metavar="PHASE", help="prefill or decode.")] = "prefill",
    tokens_per_rank: opt.TokensPerRank = None,
    seed: opt.Seed = 0,
    deadline: opt.Deadline = 120.0,
    json: opt.Json = False,
) -> None:
    """Plan, simulate and compare on the bundled trace, and write a report."""
    fit_file, held_out_file = bundled(FIT), bundled(HELD_OUT)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot make this folder: {error.strerror}; choose another with -o") from None
    from moesim.cli.plans import print_comparison
    from moesim.report import write_report
    from moesim.simulate import write_chrome_trace
    from moesim.study import compare
    from moesim.trace import Trace

    cluster = load.group(topology)
    model = load.dims(dims)
    fit, held_out = Trace.read(fit_file), Trace.read(held_out_file)
    slots = load.slots(slots_per_rank, fit, cluster)
    with screen.progress() as say:
        found = compare(
            fit, cluster, held_out=held_out, slots_per_rank=slots, dims=model, phase=phase,
            tokens_per_rank=tokens_per_rank, seed=seed, deadline_s=deadline, progress=say,
        )  # fmt: skip
        best = found.plans[found.best.solver]
        say("writing the plan, the map and the timeline")
        best.write(output / "plan.json")
        best.placement.write(output / "sglang.json", format="sglang", spec=fit.spec)
        write_chrome_trace(found.reports[best.solver], output / "timeline.json")
        say("writing the report")
        size = [] if tokens_per_rank is None else ["--tokens-per-rank", str(tokens_per_rank)]
        run = ["--topology", topology, "--dims", dims, "--phase", phase, *size, "--seed", str(seed)]
        commands = [
            shlex.join(["moesim", "compare", str(fit_file), "--held-out", str(held_out_file),
                        "--slots-per-rank", str(slots), "--deadline", f"{deadline:g}", *run]),
            shlex.join(["moesim", "simulate", str(held_out_file), "--plan", str(output / "plan.json"), *run]),
        ]  # fmt: skip
        write_report(found, output / "report.html", commands=commands)
    if json:
        screen.print_json(found.to_dict())
    else:
        print_comparison(found)
    for name, what in (
        ("report.html", "the report, for a browser"),
        ("plan.json", f"the plan of {found.best.solver}"),
        ("sglang.json", "its map, for sglang --init-expert-location"),
        ("timeline.json", "the timeline of one step, for ui.perfetto.dev"),
    ):
        screen.say(f"wrote {output / name}: {what}")


def bundled(name: str) -> Path:
    """Return the path of a bundled trace, relative where that is shorter.

    Raises
    ------
    InputError
        If this installation has no traces.
    """
    path = Path(moesim.__file__).resolve().parents[1] / "traces" / name
    if not path.is_file():
        raise InputError(
            f"{path}: this installation has no bundled traces; run the demo in a checkout of the repository, "
            "or `moesim compare` on a trace of your own"
        )
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
