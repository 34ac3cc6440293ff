"""The verbs inspect, import and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from moesim.base.errors import InputError, UnknownName
from moesim.base.units import count
from moesim.cli import load, screen, topologies
from moesim.cli import options as opt
from moesim.cli.show import show_facts

KINDS: Final = ("trace", "topology", "plan", "placement", "model")


def inspect(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="A trace, topology, plan, placement or config.json, the name of a topology, or preset:MODEL.",
            show_default=False,
        ),
    ],
    kind: Annotated[
        str | None,
        typer.Option("--as", metavar="KIND", help=f"What it is: {', '.join(KINDS)}. Default: by its name and content."),
    ] = None,
    format: Annotated[str | None, typer.Option(metavar="NAME", help="Format of the file. Default: sniffed.")] = None,
    model: opt.Model = None,
    format_option: opt.FormatOption = None,
    ranks: Annotated[
        int | None, typer.Option(metavar="N", help="Ranks of a placement, where the file does not say.")
    ] = None,
    set: opt.Set = None,
    without: opt.Without = None,
    degrade: opt.Degrade = None,
    like: opt.Like = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Draw a topology (.html), or write it (.toml, or --to)."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Format of a written topology: toml, sglang, astra-sim.")
    ] = None,
    json: opt.Json = False,
) -> None:
    """Tell what a file holds: sizes, statistics, digest, origin."""
    load.writable(output)
    kind = kind or _kind(what)
    if kind != "topology" and any((output, to, set, without, degrade, like)):
        raise InputError(f"{what}: only a topology is edited, drawn or written; leave those options out")
    if to is not None and output is None:
        raise InputError("--to: name the file to write with -o")
    if kind not in KINDS:
        raise UnknownName("kind of thing to inspect", kind, KINDS)
    path = Path(what)
    if kind == "trace":
        facts = _trace_facts(path, format, model, format_option)
    elif kind == "topology":
        cluster = load.cluster(what, set, without, like, degrade)
        facts = cluster.describe()
        if output is not None:
            topologies.write_topology(cluster, output, to)
            screen.say(f"wrote {output}")
    elif kind == "plan":
        facts = _plan_facts(path, json)
    elif kind == "placement":
        facts = _placement_facts(path, format, ranks, model)
    else:
        facts = _model_facts(what.removeprefix("preset:"))
    show_facts({"kind": kind, **facts}, json)


def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Trace in any importable format.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Parquet file to write.")],
    format: opt.Format = None,
    model: opt.Model = None,
    format_option: opt.FormatOption = None,
    json: opt.Json = False,
) -> None:
    """Turn a trace of any known format into Parquet."""
    load.writable(output)
    from moesim.trace.formats import import_any

    rows = import_any(source, output, format, **load.format_options(model, format_option))
    screen.say(f"wrote {output}")
    show_facts({"output": str(output), "rows": rows, "bytes": output.stat().st_size}, json)


def export(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="Plan of `moesim solve`, or a placement.", show_default=False)
    ],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="Format of a serving engine, e.g. sglang.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model that is served: a preset or a config.json. Default: what the plan knows.",
        ),
    ] = None,
    topology: Annotated[
        str | None,
        typer.Option("--topology", "-t", metavar="FILE|PRESET", help="Cluster, to check how the engine counts nodes."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Dispatch policy of the engine; [cyan]any[/cyan]: what it has. Default: the plan's."
        ),
    ] = None,
    fill: Annotated[
        Path | None,
        typer.Option(metavar="TRACE", help="Fill empty slots with copies of the experts that this trace loads most."),
    ] = None,
    json: opt.Json = False,
) -> None:
    """Write the map of a plan in the format that a serving engine loads, and print how to start the engine."""
    load.writable(output)
    from moesim.placement import fill_empty
    from moesim.placement.architectures import architecture_of
    from moesim.placement.export import export as run

    source = load.plan_or_placement(plan)
    placement = load.placement_of(source)
    notes = []
    if fill is not None and placement.empty_slots:
        notes.append(
            f"{count(placement.empty_slots, 'empty slot')} filled with further copies: what was predicted holds "
            "without them"
        )
        placement = fill_empty(placement, load.trace(fill, None, None, None).counts.sum(axis=0))
    node = None if topology is None else load.group(topology, placement.ranks).node
    # whatever the engine does is accepted when asked for; its notes then say what no longer holds
    policy = None if policy == "any" else policy or getattr(source, "policy", None)
    # the numbers of its layers a plan knows itself, so that its model is asked for the architecture only
    kind = architecture_of(str(getattr(source, "inputs", {}).get("model", ""))) if model is None else None
    launch = run(placement, output, to, spec=load.dims(model), policy=policy, node=node, architecture=kind)
    screen.say(f"wrote {output}")
    facts: dict[str, Any] = {"output": str(output), "format": to, **placement.summary(), "notes": notes}
    if launch is not None:
        facts["launch"] = {
            "engine": launch.engine,
            "command_line": launch.command_line,
            "flags": list(launch.flags),
            "environment": dict(launch.environment),
            "config": launch.config,
        }
        facts["notes"] = [*notes, *launch.notes]
    if json:
        screen.print_json(facts)
        return
    show_facts({key: value for key, value in facts.items() if key != "launch"}, json)
    if launch is not None:
        screen.stdout().print(f"start {launch.engine} with:", markup=False)
        screen.stdout().print(launch.command_line, markup=False, soft_wrap=True)
        if launch.config:
            screen.stdout().print(launch.config, markup=False, soft_wrap=True)


def _kind(what: str) -> str:
    path = Path(what)
    if what.startswith("preset:"):
        return "model"
    if path.suffix == ".toml":
        return "topology"
    if not path.exists() and not path.suffix and path.parent == Path():
        # a bare word that is no file can only be the name of a topology; if it is none, its error lists the names
        return "topology"
    if _is_a_model(path):
        return "model"
    if path.suffix in (".json", ".csv", ".yaml", ".yml"):
        if load.is_plan(path):
            return "plan"
        return "topology" if _looks_like_a_topology(path) else "placement"
    if path.is_dir() or path.suffix in (".xml", ".txt", ".out", ".conf", ".topo", ".log"):
        return "topology" if _looks_like_a_topology(path) else "trace"
    return "trace"


def _is_a_model(path: Path) -> bool:
    """Return whether a path is the configuration of a model, or a folder with one."""
    return path.name == "config.json" or (path.is_dir() and (path / "config.json").is_file())


def _looks_like_a_topology(path: Path) -> bool:
    from moesim.cluster.formats import recognise

    found = recognise(path)
    # any folder could hold a fabric dump and its nodes; recorded traces come in folders too
    return found is not None and (found != "fusion" or _holds_a_fabric(path))


def _holds_a_fabric(folder: Path) -> bool:
    from moesim.cluster.formats import recognise

    return any(recognise(path) in ("ibnetdiscover", "iblinkinfo") for path in folder.iterdir() if path.is_file())


def _trace_facts(path: Path, format: str | None, model: str | None, options: list[str] | None) -> dict[str, Any]:
    from moesim.trace.stats import describe

    return describe(load.trace(path, format, model, options))


def _plan_facts(path: Path, every_layer: bool) -> dict[str, Any]:
    from moesim.cli.plan_facts import plan_facts
    from moesim.solve import Plan

    plan = Plan.read(path)
    inputs = {key: value for key, value in plan.inputs.items() if not isinstance(value, (list, tuple))}
    return {**plan_facts(plan, every_layer), "options": dict(plan.options), "inputs": inputs}


def _placement_facts(path: Path, format: str | None, ranks: int | None, model: str | None) -> dict[str, Any]:
    return dict(load.placement(path, format, ranks=ranks, spec=load.dims(model)).summary())


def _model_facts(name: str) -> dict[str, Any]:
    from moesim.presets import NOTES
    from moesim.spec import ModelSpec

    spec = ModelSpec.find(name)
    return {
        "name": spec.name,
        "layers": spec.layers,
        "num_hidden_layers": spec.num_hidden_layers,
        "experts": spec.experts,
        "top_k": spec.top_k,
        "shared_experts": spec.shared_experts,
        "groups": spec.groups,
        "group_limit": spec.group_limit,
        "hidden": spec.hidden,
        "intermediate": spec.intermediate,
        "parameters": spec.parameters(),
        "active_parameters": spec.parameters(active=True),
        "expert_bytes": spec.expert_bytes,
        "dispatch_token_bytes": spec.dispatch_token_bytes,
        "combine_token_bytes": spec.combine_token_bytes,
        **({"note": NOTES[spec.name]} if spec.name in NOTES else {}),
    }
