"""The verb calibrate: constants of a topology from measurements of the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moesim.base.errors import InputError
from moesim.cli import load, screen
from moesim.cli import options as opt

if TYPE_CHECKING:
    from moesim.calibrate import Fit, Observation
    from moesim.cluster import Cluster

_MEASURED: Final = "Measurements"
_TOLD: Final = "What files do not say"


def calibrate(
    topology: opt.Topology,
    nccl: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Output of nccl-tests' alltoall_perf.", rich_help_panel=_MEASURED),
    ] = None,
    deepep: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Output of DeepEP's test_low_latency, test_intranode or test_internode; repeatable.",
            rich_help_panel=_MEASURED,
        ),
    ] = None,
    kernels: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Kernel table of `moesim profile`; repeatable.", rich_help_panel=_MEASURED),
    ] = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Chrome trace of torch.profiler, .json or .json.gz; repeatable.",
            rich_help_panel=_MEASURED,
        ),
    ] = None,
    nodes: Annotated[
        int, typer.Option(metavar="N", help="Nodes of the DeepEP runs.", rich_help_panel=_TOLD, min=1)
    ] = 1,
    gpus: Annotated[
        int, typer.Option(metavar="N", help="GPUs of a node in the DeepEP runs.", rich_help_panel=_TOLD, min=1)
    ] = 8,
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Tokens of a rank. Default: as printed, else the script's.", rich_help_panel=_TOLD, min=1
        ),
    ] = None,
    experts: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Experts of the DeepEP runs. Default: the script's.", rich_help_panel=_TOLD, min=1
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model of the profile: preset or config.json.", rich_help_panel=_TOLD),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(metavar="N", help="Expert-parallel ranks of the profile.", rich_help_panel=_TOLD, min=1),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="MoE layers that the profile shows, all steps together. Default: one step of the model.",
            rich_help_panel=_TOLD,
            min=1,
        ),
    ] = None,
    context: Annotated[
        int, typer.Option(metavar="N", help="Mean positions attended to in the profile.", rich_help_panel=_TOLD, min=1)
    ] = 2048,
    decode: Annotated[
        bool, typer.Option("--decode", help="The profile is of decode, not prefill.", rich_help_panel=_TOLD)
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the topology here.", rich_help_panel="Output"),
    ] = None,
    json: opt.Json = False,
) -> None:
    """Fit the constants of a topology to measurements, and write them as a topology over it.

    What no measurement tells is left as it was, and said. Give the new file to solve, simulate and compare as
    [bold]--topology[/bold].
    """
    load.writable(output)
    from moesim.calibrate import calibrate as run
    from moesim.calibrate import write_overlay
    from moesim.calibrate.deepep import Setting, read_deepep
    from moesim.calibrate.kernels import read_kernel_table
    from moesim.calibrate.nccl import read_nccl
    from moesim.calibrate.overlay import base_of

    if output is not None:
        base_of(topology, output)
    given = [path.resolve() for paths in (nccl, deepep, kernels, profile) for path in paths or ()]
    if twice := next((path for path in given if given.count(path) > 1), None):
        raise InputError(f"{twice}: is given more than once, and its rows would count as often; give it once")
    cluster = load.cluster(topology)
    setting = Setting(nodes=nodes, gpus=gpus, tokens=tokens, experts=experts)
    found: list[Observation] = []
    for path in nccl or ():
        found += read_nccl(path, cluster)
    for path in deepep or ():
        found += read_deepep(path, cluster, setting)
    for path in kernels or ():
        found += read_kernel_table(path, cluster)
    for path in profile or ():
        found += _profiled(path, cluster, model, ranks, tokens, layers, context, decode)
    with screen.progress() as say:
        fit = run(cluster, found, say)
    if output is not None:
        write_overlay(fit, topology, output)
        screen.say(f"wrote {output}")
    if json:
        screen.print_json(fit.to_dict())
    else:
        _print(fit, cluster.name)


def _profiled(
    path: Path,
    cluster: Cluster,
    model: str | None,
    ranks: int | None,
    tokens: int | None,
    layers: int | None,
    context: int,
    decode: bool,
) -> list[Observation]:
    from moesim.calibrate.kernels import Step, read_profile
    from moesim.spec import ModelSpec

    if model is None or tokens is None:
        raise InputError(f"{path}: a profile does not say what ran; give --model and --tokens")
    spec = ModelSpec.find(model)
    step = Step(spec, tokens, ranks or cluster.ranks, layers or spec.layers, decode, context)
    if step.ranks > cluster.ranks:
        raise InputError(f"--ranks: {step.ranks} wanted, {cluster.name} has {cluster.ranks}; name a larger topology")
    return read_profile(path, cluster, step)


def _print(fit: Fit, name: str) -> None:
    from moesim.calibrate.overlay import left

    rows = [
        (
            item.key, str(item.before), str(item.value), str(item.observations), f"{item.error_before:.1%}",
            f"{item.error:.1%}", item.limit and f"at its {item.limit} limit",
        )
        for item in fit.fitted
    ]  # fmt: skip
    columns = ("constant", "before", "fitted", "observations", "error before", "error", "")
    screen.print_table(columns, rows, title=f"Calibration of {name}")
    residuals = [(what, str(count), f"{a:.1%}", f"{b:.1%}") for what, count, a, b in fit.residuals]
    screen.print_table(("measured", "observations", "error before", "error"), residuals, title="Residuals")
    screen.print_notes(left(fit))
