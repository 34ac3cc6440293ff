"""Training the bundled model from scratch, on one process or, under torchrun, on several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from moesim.base.errors import InputError
from moesim.base.files import write_text
from moesim.moe.config import MoeConfig
from moesim.moe.corpus import DOMAINS, Document, read_corpus
from moesim.moe.data import Batches, streams
from moesim.moe.evaluate import domain_losses
from moesim.moe.health import collapse
from moesim.moe.model import MoeModel
from moesim.moe.parallel import Group, join
from moesim.moe.recipe import Recipe
from moesim.moe.record import StepRecorder
from moesim.moe.run import Run
from moesim.moe.tokenizer import load_tokenizer, train_tokenizer
from moesim.moe.weights import save_model

TOKENIZER_BYTES = 1_500_000


def ensure_tokenizer(documents: Sequence[Document], path: Path, vocabulary: int) -> Tokenizer:
    """Read the tokenizer, or learn it from equal shares of the domains if the file is absent."""
    if path.exists():
        return load_tokenizer(path)
    texts = list[str]()
    for domain in DOMAINS:
        size = 0
        for document in documents:
            if document.domain == domain and size < TOKENIZER_BYTES:
                texts.append(document.text)
                size += len(document.text.encode())
    tokenizer = train_tokenizer(texts, vocabulary)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, tokenizer.to_str(pretty=True))
    return tokenizer


def train(
    corpus: str | Path, out: str | Path, *, config: MoeConfig | None = None, recipe: Recipe | None = None,
    device: str = "cpu", quiet: bool = False, capture: str | Path | None = None, capture_every: int = 50,
    keep_weights: bool = False, evaluate_every: int = 0, evaluate_windows: int = 16,
) -> MoeModel:  # fmt: skip
    """Train a model and write it to `out`.

    Written are weights, tokenizer, `checkpoint.pt`, `metrics.jsonl` (a line a step: losses, balance and collapse of
    every layer) and `evaluation.jsonl` (loss of each domain of the validation part). A checkpoint in `out` is resumed,
    by whatever number of processes. Progress goes to stderr unless `quiet`.

    Under torchrun each process takes an equal part of every batch and holds an equal part of the experts; rows travel
    by all-to-all.

    Parameters
    ----------
    corpus
        Folder written by `python -m moesim.moe.corpus`.
    out
        Folder of the run; a `tokenizer.json` found there is used, else one is learnt.
    device
        Torch device; on CUDA the forward pass runs in bfloat16 autocast.
    capture
        Trace file for the routing of every `capture_every`-th step, with gate weights if `keep_weights`.
    evaluate_every
        Steps between evaluations; 0 evaluates at the end only.
    evaluate_windows
        Sequences of each domain of the validation part that are evaluated.

    Returns
    -------
    The model with all experts, on every process.

    Raises
    ------
    MoesimError
        The corpus, the checkpoint, or the number of processes does not fit.
    """
    config, recipe, out = config or MoeConfig(), recipe or Recipe(), Path(out)
    with join(device) as (group, here):
        documents = read_corpus(corpus)
        run = _prepare(config, recipe, out, documents, group, here)
        tokenizer = load_tokenizer(out / "tokenizer.json")
        validation = streams([d for d in documents if d.part == "validation"], tokenizer)
        console = Console(stderr=True, quiet=quiet or group.rank > 0)
        if not validation:
            console.print("the corpus has no validation part: nothing is evaluated")

        def evaluate() -> None:
            if validation:
                losses = domain_losses(run.model, validation, windows=evaluate_windows, group=group)
                mean = sum(losses.values()) / len(losses)
                _write(evaluations, {"step": run.step, "loss": round(mean, 4), "domains": losses})
                console.print(f"step {run.step}: validation loss {mean:.3f}, mean of {len(losses)} domains")

        with ExitStack() as stack:
            metrics, evaluations = (
                stack.enter_context((out / name).open("a", encoding="utf-8", buffering=1)) if group.rank == 0 else None
                for name in ("metrics.jsonl", "evaluation.jsonl")
            )
            recorder = capture and stack.enter_context(
                StepRecorder(capture, run, every=capture_every, domains=tuple(DOMAINS), keep_weights=keep_weights)
            )
            bar = stack.enter_context(_progress(console))
            collapsed = ""
            task = bar.add_task("training", total=1.0)
            bar.update(task, completed=min(run.progress, 1.0))
            while run.progress < 1.0:
                record = recorder.advance() if isinstance(recorder, StepRecorder) else run.advance()
                _write(metrics, record)
                if run.step % recipe.save_every == 0:
                    run.save(out / "checkpoint.pt")
                if evaluate_every and run.step % evaluate_every == 0 and run.progress < 1.0:
                    evaluate()
                if not collapsed and (collapsed := collapse(record, recipe.warmup)):
                    console.print(collapsed)
                bar.update(task, completed=min(run.progress, 1.0), description=f"training, loss {record['loss']:.3f}")
            evaluate()
        run.save(out / "checkpoint.pt")
        model = MoeModel(config)
        model.load_state_dict(run.whole_model())
        if group.rank == 0:
            save_model(model, tokenizer, out)
        group.wait()
    return model.to(here).eval()


def _prepare(
    config: MoeConfig, recipe: Recipe, out: Path, documents: Sequence[Document], group: Group, device: torch.device
) -> Run:
    training = [document for document in documents if document.part == "train"]
    if not training:
        raise InputError("the corpus has no part 'train'; make it again with `python -m moesim.moe.corpus`")
    # the first process learns the tokenizer, the others read it
    if group.rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        ensure_tokenizer(training, out / "tokenizer.json", config.vocabulary)
    group.wait()
    tokens = streams(training, load_tokenizer(out / "tokenizer.json"))
    batches = Batches(tokens, rows=recipe.rows, length=config.context, seed=recipe.seed)
    run = Run(config, recipe, batches, device=device, group=group)
    if (out / "checkpoint.pt").exists():
        run.resume(out / "checkpoint.pt")
        if group.rank == 0:
            _forget_after(out, run.step)
    group.wait()
    return run


def _forget_after(out: Path, step: int) -> None:
    """Drop lines of steps that a stopped run took after its last checkpoint: they are taken again."""
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        path = out / name
        if path.exists():
            lines = path.read_text("utf-8").splitlines(keepends=True)
            # a line that was being written when the run was killed has no end
            write_text(path, "".join(s for s in lines if s.endswith("\n") and json.loads(s)["step"] <= step))


def _write(file: TextIO | None, record: dict[str, object]) -> None:
    if file is not None:
        file.write(json.dumps(record) + "\n")


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.1f}%"), TimeRemainingColumn()
    return Progress(*columns, console=console, disable=console.quiet)
