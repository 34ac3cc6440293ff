"""The verbs train and capture: the bundled model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.base.errors import InputError, MissingExtra
from moesim.base.units import count
from moesim.cli import load, screen
from moesim.moe.routers import ROUTERS


def train(
    corpus: Annotated[Path, typer.Option(metavar="DIR", help="Folder written by `python -m moesim.moe.corpus`.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run; resumed if it holds a checkpoint.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML or JSON with the tables `model` and `training`, or a model's JSON. Default: the bundled model.",
        ),
    ] = None,
    router: Annotated[str | None, typer.Option(metavar="NAME", help=f"One of {', '.join(ROUTERS.names())}.")] = None,
    top_k: Annotated[int | None, typer.Option(metavar="K", help="Experts that a token picks.")] = None,
    capacity_factor: Annotated[
        float | None, typer.Option(metavar="F", help="Picks an expert takes, in multiples of its even share.")
    ] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Train the dense model of the same active size.")] = False,
    tokens: Annotated[int | None, typer.Option(metavar="N", help="Length of the run. Default: the recipe's.")] = None,
    minutes: Annotated[float | None, typer.Option(metavar="M", help="Wall-clock budget.")] = None,
    rows: Annotated[int | None, typer.Option(metavar="N", help="Sequences of a batch.")] = None,
    accumulate: Annotated[int | None, typer.Option(metavar="N", help="Parts a batch is run in, for memory.")] = None,
    learning_rate: Annotated[float | None, typer.Option(metavar="X", help="Peak of the schedule.")] = None,
    balance_loss: Annotated[float | None, typer.Option(metavar="X", help="Coefficient of the balance loss.")] = None,
    trace: Annotated[
        Path | None, typer.Option("--capture", metavar="FILE", help="Record the routing of training as a trace.")
    ] = None,
    capture_every: Annotated[int, typer.Option(metavar="N", help="Steps between two that are recorded.")] = 50,
    weights: Annotated[bool, typer.Option("--weights", help="Record gate weights too.")] = False,
    evaluate_every: Annotated[
        int, typer.Option(metavar="N", help="Steps between evaluations of every domain; 0: at the end only.")
    ] = 0,
    device: Annotated[str, typer.Option(metavar="NAME", help="torch device.")] = "cpu",
    threads: Annotated[int | None, typer.Option(metavar="N", help="CPU threads. Default: torch's.")] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Of everything drawn. Default: the recipe's.")
    ] = None,
) -> None:
    """Train the bundled MoE model from scratch (extra `gpu`).

    With several processes, each holds a part of the experts (NCCL on GPUs, gloo on CPUs):
    `torchrun --nproc-per-node 4 -m moesim train ...`.
    """
    if trace is not None:
        load.writable(trace)
    torch = _torch()
    from moesim.moe.config import MoeConfig
    from moesim.moe.recipe import Recipe, read_settings
    from moesim.moe.train import train as run

    if threads is not None:
        torch.set_num_threads(threads)
    model, recipe = (MoeConfig(), Recipe()) if config is None else read_settings(config)
    model = replace(model, **_given(router=router, top_k=top_k, capacity_factor=capacity_factor))
    recipe = replace(
        recipe,
        **_given(
            tokens=tokens, minutes=minutes, rows=rows, accumulate=accumulate, learning_rate=learning_rate,
            balance_loss=balance_loss, seed=seed,
        ),
    )  # fmt: skip
    run(
        corpus, output, config=model.dense() if dense else model, recipe=recipe, device=device, capture=trace,
        capture_every=capture_every, keep_weights=weights, evaluate_every=evaluate_every,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        screen.say(f"wrote {output}" + (f" and {trace}" if trace else ""))


def _given(**values: Any) -> dict[str, Any]:
    """Return what was given on the command line."""
    return {name: value for name, value in values.items() if value is not None}


def capture_bundled(
    corpus: Annotated[Path, typer.Option(metavar="DIR", help="Folder written by `python -m moesim.moe.corpus`.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Parquet file to write.")],
    part: Annotated[str, typer.Option(metavar="PART", help="Part of the corpus; parts share no document.")] = "eval",
    requests: Annotated[int, typer.Option(metavar="N", help="Requests, equally many for each domain.")] = 480,
    prompt_tokens: Annotated[
        str, typer.Option(metavar="A,B", help="Shortest and longest prompt, in tokens.")
    ] = "48,400",
    new_tokens: Annotated[
        str, typer.Option(metavar="A,B", help="Fewest and most tokens that may follow a prompt.")
    ] = "32,160",
    weights: Annotated[bool, typer.Option("--weights", help="Keep gate weights.")] = False,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of a trained model. Default: the bundled weights.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="torch device.")] = "cpu",
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of everything drawn.")] = 0,
) -> None:
    """Serve documents of the corpus with the bundled model and record its routing (extra `gpu`)."""
    load.writable(output)
    _torch()
    from moesim.moe.traces import capture_bundled as run
    from moesim.moe.weights import BUNDLED

    trace = run(
        corpus, output, part=part, count=requests, seed=seed, weights=weights, model=model or BUNDLED, device=device,
        prompt_tokens=_bounds("--prompt-tokens", prompt_tokens), new_tokens=_bounds("--new-tokens", new_tokens),
    )  # fmt: skip
    screen.say(f"wrote {output}: {count(trace.tokens, 'token')} in {count(trace.steps, 'step')}")


def _bounds(option: str, text: str) -> tuple[int, int]:
    try:
        low, high = (int(word) for word in text.split(","))
    except ValueError:
        low, high = 0, -1
    if not 0 <= low <= high:
        raise InputError(f"{option} {text}: expected two whole numbers, the smaller one first, such as 48,400")
    return low, high


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "gpu") from None
    return torch
