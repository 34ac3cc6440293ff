"""The verbs train and capture: the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.base.errors import MissingExtra
from moesim.cli import load, screen

capture = typer.Typer(help="Record the routing of a model as a trace.", no_args_is_help=True)


def train(
    corpus: Annotated[Path, typer.Option(metavar="DIR", help="Folder written by `python -m moesim.moe.corpus`.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run; resumed if it holds a checkpoint.")
    ],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON of the model. Default: the bundled model.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(metavar="N", help="Length of the run. Default: the recipe's.")] = None,
    minutes: Annotated[float | None, typer.Option(metavar="M", help="Wall-clock budget.")] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="torch device.")] = "cpu",
    threads: Annotated[int | None, typer.Option(metavar="N", help="CPU threads. Default: torch's.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything drawn.")] = 0,
) -> None:
    """Train the bundled MoE model from scratch (extra `gpu`)."""
    torch = _torch()
    from moesim.moe.config import MoeConfig
    from moesim.moe.train import Recipe
    from moesim.moe.train import train as run

    if threads is not None:
        torch.set_num_threads(threads)
    recipe = Recipe(tokens=Recipe.tokens if tokens is None else tokens, minutes=minutes, seed=seed)
    run(corpus, output, config=None if config is None else MoeConfig.read(config), recipe=recipe, device=device)
    screen.say(f"wrote {output}")


@capture.command("bundled")
def capture_bundled(
    corpus: Annotated[Path, typer.Option(metavar="DIR", help="Folder written by `python -m moesim.moe.corpus`.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Parquet file to write.")],
    part: Annotated[str, typer.Option(metavar="PART", help="Part of the corpus; parts share no document.")] = "eval",
    requests: Annotated[int, typer.Option(metavar="N", help="Requests, equally many for each domain.")] = 480,
    weights: Annotated[bool, typer.Option("--weights", help="Keep gate weights.")] = False,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of a trained model. Default: the bundled weights.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="torch device.")] = "cpu",
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything drawn.")] = 0,
) -> None:
    """Serve documents of the corpus with the bundled model and record its routing (extra `gpu`)."""
    load.writable(output)
    _torch()
    from moesim.moe.traces import capture_bundled as run
    from moesim.moe.weights import BUNDLED

    trace = run(
        corpus, output, part=part, count=requests, seed=seed, weights=weights, model=model or BUNDLED, device=device
    )
    screen.say(f"wrote {output}: {trace.tokens} tokens in {trace.steps} steps")


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "gpu") from None
    return torch
