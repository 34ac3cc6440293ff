"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

_IN, _RUN, _OUT = "Inputs", "What runs", "Output"

TraceFile = Annotated[Path, typer.Argument(metavar="TRACE", help="Trace in any importable format.", show_default=False)]
Format = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Format of the trace; default: sniffed.", rich_help_panel=_IN),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Model that was recorded, where the file does not say: a preset, or a config.json.",
        rich_help_panel=_IN,
    ),
]
FormatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--format-option",
        metavar="KEY=VALUE",
        help="An option of the format, e.g. [cyan]domain=category[/cyan]; repeatable.",
        rich_help_panel=_IN,
    ),
]
Topology = Annotated[
    str,
    typer.Option("--topology", "-t", metavar="FILE|PRESET", help="Cluster description.", rich_help_panel=_IN),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help='Change the cluster: [cyan]nodes=16[/cyan], [cyan]tier.rail.bandwidth="800 GB/s"[/cyan]; repeatable.',
        rich_help_panel=_IN,
    ),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Take a part of the cluster away: [cyan]node3[/cyan], [cyan]node0.gpu2[/cyan], a link; repeatable.",
        rich_help_panel=_IN,
    ),
]
Degrade = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=PART",
        help="Leave a part of the bandwidth: [cyan]node1.nic3=0.5[/cyan]; repeatable.",
        rich_help_panel=_IN,
    ),
]
Like = Annotated[
    str | None,
    typer.Option(
        metavar="PRESET",
        help="Preset whose constants hold where an imported topology (nvidia-smi, NCCL XML, ...) is silent.",
        rich_help_panel=_IN,
    ),
]
Part = Annotated[
    str,
    typer.Option(
        help="Part of the trace: [cyan]all[/cyan], [cyan]fit[/cyan] or [cyan]held-out[/cyan].", rich_help_panel=_IN
    ),
]
Fit = Annotated[
    float,
    typer.Option(metavar="FRACTION", help="Fraction of the trace that plans are fitted on.", rich_help_panel=_IN),
]
PartFit = Annotated[
    float | None,
    typer.Option(
        metavar="FRACTION",
        help="With --part: fraction of the trace that plans are fitted on. Default: 0.5.",
        rich_help_panel=_IN,
    ),
]
Ranks = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Size of the expert-parallel group: the first N GPUs. Default: all.", rich_help_panel=_RUN
    ),
]
Dims = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Replay the routing at the dimensions of this model (preset or config.json). Default: its own.",
        rich_help_panel=_RUN,
    ),
]
Phase = Annotated[
    str | None,
    typer.Option(
        help="prefill, decode or train. Default: the first of them that the trace holds.", rich_help_panel=_RUN
    ),
]
TokensPerRank = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Tokens of a rank in a step. Default: as recorded, else 1024 in prefill and 128 in decode.",
        rich_help_panel=_RUN,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Take only the first N steps of each part; a part that fills no step is drawn again to make N (a note).",
        rich_help_panel=_RUN,
    ),
]
Policy = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Dispatch policy: who serves a token. SGLang's is sglang, vLLM's hash, TensorRT-LLM's uniform.",
        rich_help_panel=_RUN,
    ),
]
Transport = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="How tokens travel. Default: direct in decode, else hierarchical.", rich_help_panel=_RUN
    ),
]
Network = Annotated[str, typer.Option(metavar="NAME", help="How bytes become seconds.", rich_help_panel=_RUN)]
Compute = Annotated[
    str,
    typer.Option(metavar="NAME|FILE", help="Compute: roofline, silicon, or a kernel table.", rich_help_panel=_RUN),
]
SlotsPerRank = Annotated[
    int | None,
    typer.Option(
        metavar="C",
        help="Experts that a rank holds in a layer. Default: the fewest that hold all, and one more.",
        rich_help_panel=_RUN,
    ),
]
Deadline = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="Time that a solver may search. Compiling, once after an installation, is not counted; pricing its "
        "candidates comes on top, and matters where many layers meet large steps.",
        rich_help_panel=_RUN,
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Of everything drawn.", rich_help_panel=_RUN)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.", rich_help_panel=_OUT)]

DEFAULT_FIT: Final = 0.5
DEFAULT_POLICY: Final = "nearest"
DEFAULT_NETWORK: Final = "bottleneck"
DEFAULT_COMPUTE: Final = "roofline"
