"""The verb capture: models of transformers, serving engines, the bundled model."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.base.errors import InputError
from moesim.base.units import count
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
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of sampling.")] = 0,
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


Url = Annotated[str, typer.Option(metavar="URL", help="Address of the server, e.g. http://localhost:8000.")]
Spec = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Shape of the served model: a preset or a config.json. Default: the server's."),
]
Served = Annotated[str | None, typer.Option(metavar="NAME", help="Name the server knows it by. Default: its first.")]
AnswerTokens = Annotated[int, typer.Option("--new-tokens", metavar="N", help="Most tokens of an answer.")]
Chat = Annotated[bool, typer.Option("--chat", help="Ask texts as a chat; messages always are.")]
Temperature = Annotated[float, typer.Option(metavar="X", help="Of sampling.")]
Concurrency = Annotated[int, typer.Option(metavar="N", help="Requests under way at a time.")]
Timeout = Annotated[float, typer.Option(metavar="S", help="Seconds in which a whole reply must have come.")]
Retries = Annotated[int, typer.Option(metavar="N", help="Times to ask again after a timeout or a broken reply.")]
KeyEnv = Annotated[
    str | None, typer.Option(metavar="NAME", help="Environment variable that holds the server's API key.")
]
KeepReplies = Annotated[
    bool, typer.Option("--keep-replies", help="Keep the replies word for word in FILE.responses.jsonl.")
]


@capture.command("vllm")
def vllm(
    url: Url,
    prompts: Prompts,
    output: Output,
    model: Spec = None,
    served_model: Served = None,
    column: Column = None,
    domain: Domain = None,
    limit: Limit = None,
    new_tokens: AnswerTokens = 128,
    temperature: Temperature = 1.0,
    chat: Chat = False,
    concurrency: Concurrency = 16,
    timeout: Timeout = 600.0,
    retries: Retries = 2,
    api_key_env: KeyEnv = None,
    keep_replies: KeepReplies = False,
    json: opt.Json = False,
) -> None:
    """Send prompts to a vLLM server that runs with --enable-return-routed-experts and record what it routed.

    Replies are kept as they come; what fails is asked again, and after an interruption the same command asks only for
    what is missing.
    """
    from moesim.capture.dialects import VLLM

    _drive(
        VLLM(), url, prompts, output, model, (new_tokens, temperature, chat, served_model), (column, domain, limit),
        concurrency, timeout, retries, api_key_env, keep_replies, json,
    )  # fmt: skip


@capture.command("sglang")
def sglang(
    url: Url,
    output: Output,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts, as for the other engines; needed unless --seconds is given."),
    ] = None,
    recorder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Use SGLang's recorder, which writes its files to this folder."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", help="With --recorder: record live traffic for so long.")
    ] = None,
    format_option: opt.FormatOption = None,
    model: Spec = None,
    served_model: Served = None,
    column: Column = None,
    domain: Domain = None,
    limit: Limit = None,
    new_tokens: AnswerTokens = 128,
    temperature: Temperature = 1.0,
    chat: Chat = False,
    concurrency: Concurrency = 16,
    timeout: Timeout = 600.0,
    retries: Retries = 2,
    api_key_env: KeyEnv = None,
    keep_replies: KeepReplies = False,
    json: opt.Json = False,
) -> None:
    """Send prompts to an SGLang server that runs with --enable-return-routed-experts and record what it routed.

    With --recorder, its recorder is started, stopped and dumped instead, around the prompts or --seconds of live
    traffic; its mode (counts, or picks of every token) is chosen where the server is started.
    """
    from moesim.capture.dialects import SGLang

    if recorder is None and seconds is not None:
        raise InputError("--seconds: live traffic is seen by the recorder only; add --recorder DIR")
    if (prompts is None) == (seconds is None):
        raise InputError("give either --prompts, or --recorder with --seconds")
    how = (new_tokens, temperature, chat, served_model)
    which = (column, domain, limit)
    if recorder is None and prompts is not None:
        _drive(
            SGLang(), url, prompts, output, model, how, which, concurrency, timeout, retries, api_key_env, keep_replies,
            json,
        )  # fmt: skip
        return
    load.writable(output)
    from moesim.capture.http import Server
    from moesim.capture.recording import record_sglang
    from moesim.capture.server import spec_of, traffic_of

    server = Server(url, timeout, _key(api_key_env))
    spec = load.dims(model) or spec_of(SGLang().served(server)[1])
    options = load.format_options(None, format_option) | {"model": spec, "origin": {"url": server.url}}
    with soft_stop(output), prompts_bar("recording") as progress:
        if prompts is None:
            traffic: Any = lambda: time.sleep(seconds or 0)  # noqa: E731
        else:
            traffic = traffic_of(
                SGLang(), server, _prompts(prompts, *which), _asked(*how), concurrency=concurrency, retries=retries,
                progress=progress,
            )  # fmt: skip
        rows, files = record_sglang(server, recorder or Path(), output, traffic, options=options)
    screen.say(f"wrote {output}")
    show_facts({"output": str(output), "rows": rows, "files": [str(file) for file in files]}, json)


def _drive(
    dialect: Any, url: str, prompts: Path, output: Path, model: str | None, how: tuple[Any, ...],
    which: tuple[Any, ...], concurrency: int, timeout: float, retries: int, key: str | None, keep: bool, json: bool,
) -> None:  # fmt: skip
    load.writable(output)
    from moesim.capture.http import Server
    from moesim.capture.prompts import digest_of
    from moesim.capture.server import capture_server

    items = _prompts(prompts, *which)
    facts = {"prompts": {"file": prompts.name, "digest": digest_of(prompts), "count": len(items)}}
    with soft_stop(output), prompts_bar("capturing") as progress:
        outcome = capture_server(
            dialect, Server(url, timeout, _key(key)), items, output, asked=_asked(*how), spec=load.dims(model),
            origin=facts, concurrency=concurrency, retries=retries, keep_replies=keep, progress=progress,
        )  # fmt: skip
    screen.say(f"wrote {output}")
    if outcome.kept is not None:
        screen.say(f"replies kept in {outcome.kept}")
    found = {"output": str(output), "tokens": outcome.tokens, "requests": outcome.requests}
    show_facts(found | {"failed": len(outcome.failed), "bytes": output.stat().st_size}, json)
    if outcome.failed:
        number, problem = next(iter(outcome.failed.items()))
        raise InputError(
            f"{len(outcome.failed)} of {count(len(items), 'prompt')} failed, the first, {number}: {problem}; {output} "
            "holds the others, run again to ask for those only"
        )


def _prompts(path: Path, column: str | None, domain: str | None, limit: int | None) -> Any:
    from moesim.capture.prompts import read_prompts

    return read_prompts(path, column=column, domain=domain, limit=limit)


def _asked(new_tokens: int, temperature: float, chat: bool, served: str | None) -> Any:
    from moesim.capture.dialects import Asked

    return Asked(new_tokens, temperature, chat, served)


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (value := os.environ.get(variable)):
        raise InputError(f"--api-key-env {variable}: the environment has no such variable; export it first")
    return value
