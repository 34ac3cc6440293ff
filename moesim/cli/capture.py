"""The verb capture: models of transformers, serving engines, the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli import load, models, screen
from moesim.cli import options as opt
from moesim.cli.bars import prompts_bar, soft_stop
from moesim.cli.show import show_facts

capture = typer.Typer(help="Record the routing of a running model as a trace.", no_args_is_help=True)
capture.command("bundled")(models.capture_bundled)

Prompts = Annotated[
    Path,
    typer.Option(metavar="FILE", help="Prompts: txt (one a line), jsonl, json, csv or parquet; ShareGPT's form too."),
]
Column = Annotated[str | None, typer.Option(metavar="NAME", help="Column of the prompts. Default: by its usual names.")]
Domain = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column that names the domain of a prompt. Default: as above.")
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Take only the first prompts.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Parquet file to write.")]


@capture.command("transformers")
def transformers(
    model: Annotated[str, typer.Option(metavar="DIR|ID", help="Model of transformers 5.0 or later.")],
    prompts: Prompts,
    output: Output,
    column: Column = None,
    domain: Domain = None,
    limit: Limit = None,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to generate a prompt; 0: prefill only.")] = 64,
    prompt_tokens: Annotated[int, typer.Option(metavar="N", help="Cut prompts to so many tokens.")] = 2048,
    batch: Annotated[int, typer.Option(metavar="N", help="Prompts that run together; 1 pads nothing.")] = 8,
    temperature: Annotated[float, typer.Option(metavar="X", help="Of sampling; 0: the likeliest token.")] = 0.0,
    chat: Annotated[bool, typer.Option("--chat", help="Put texts into the model's chat template.")] = False,
    device: Annotated[str, typer.Option(metavar="NAME", help="torch device; auto: spread over all.")] = "cpu",
    dtype: Annotated[str, typer.Option(metavar="NAME", help="Of the weights; auto: as stored.")] = "auto",
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Do not keep gate weights.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of sampling.")] = 0,
    json: opt.Json = False,
) -> None:
    """Run prompts through a model of transformers and record what its routers decide (extra `capture`).

    Padding is left out, prefill and decode are told apart. Stopped by Ctrl-C or SIGTERM, it writes what it has; killed,
    it leaves FILE.parts, from which the same command goes on and which `moesim import` reads.
    """
    load.writable(output)
    from moesim.capture.generate import Generation, capture_transformers

    how = Generation(new_tokens, prompt_tokens, batch, temperature, chat, seed)
    with soft_stop(output), prompts_bar("capturing") as progress:
        tokens = capture_transformers(
            model, prompts, output, how=how, column=column, domain=domain, limit=limit, device=device, dtype=dtype,
            weights=not no_weights, trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip
    screen.say(f"wrote {output}")
    show_facts({"output": str(output), "tokens": tokens, "bytes": output.stat().st_size}, json)
