"""The verbs inspect, import and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from moesim.base.errors import UnknownName
from moesim.cli import load, screen
from moesim.cli import options as opt
from moesim.cli.show import show_facts

KINDS: Final = ("trace", "topology", "plan", "placement", "model")


def inspect(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="A trace, topology, plan or placement file, the name of a topology, or preset:MODEL.",
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
    json: opt.Json = False,
) -> None:
    """Tell what a file holds: sizes, statistics, digest, origin."""
    kind = kind or _kind(what)
    if kind not in KINDS:
        raise UnknownName("kind of thing to inspect", kind, KINDS)
    path = Path(what)
    if kind == "trace":
        facts = _trace_facts(path, format, model, format_option)
    elif kind == "topology":
        facts = _topology_facts(what)
    elif kind == "plan":
        facts = _plan_facts(path)
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
    trace = load.trace(source, format, model, format_option)
    trace.write(output)
    screen.say(f"wrote {output}")
    facts = {"output": str(output), "model": trace.spec.name, "tokens": trace.tokens, "steps": trace.steps,
             "domains": list(trace.domains), "digest": trace.digest}  # fmt: skip
    show_facts(facts, json)


def export(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="Plan of `moesim solve`, or a placement.", show_default=False)
    ],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="Format of a serving engine, e.g. sglang.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")],
    json: opt.Json = False,
) -> None:
    """Write the map of a plan in the format that a serving engine loads."""
    load.writable(output)
    placement = load.placement_of(load.plan_or_placement(plan))
    placement.write(output, format=to)
    screen.say(f"wrote {output}")
    show_facts({"output": str(output), "format": to, **placement.summary()}, json)


def _kind(what: str) -> str:
    path = Path(what)
    if what.startswith("preset:"):
        return "model"
    if path.suffix == ".toml":
        return "topology"
    if not path.exists() and not path.suffix and path.parent == Path():
        # a bare word that is no file can only be the name of a topology; if it is none, its error lists the names
        return "topology"
    if path.suffix in (".json", ".csv", ".yaml", ".yml"):
        return "plan" if load.is_plan(path) else "placement"
    return "trace"


def _trace_facts(path: Path, format: str | None, model: str | None, options: list[str] | None) -> dict[str, Any]:
    from moesim.trace.stats import describe

    return describe(load.trace(path, format, model, options))


def _topology_facts(what: str) -> dict[str, Any]:
    from moesim.cluster import Cluster

    return Cluster.read(what).describe()


def _plan_facts(path: Path) -> dict[str, Any]:
    from moesim.cli.plans import plan_facts
    from moesim.solve import Plan

    plan = Plan.read(path)
    inputs = {key: value for key, value in plan.inputs.items() if not isinstance(value, (list, tuple))}
    return {**plan_facts(plan), "options": dict(plan.options), "inputs": inputs}


def _placement_facts(path: Path, format: str | None, ranks: int | None, model: str | None) -> dict[str, Any]:
    return dict(load.placement(path, format, ranks=ranks, spec=load.dims(model)).summary())


def _model_facts(name: str) -> dict[str, Any]:
    from moesim.spec import ModelSpec

    spec = ModelSpec.preset(name)
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
    }
