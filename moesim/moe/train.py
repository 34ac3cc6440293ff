"""Training the bundled model from scratch: `python -m moesim.moe.train --corpus DIR --out DIR --minutes 40`."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import nn

from moesim.base.errors import InputError, MoesimError
from moesim.base.files import atomic_path
from moesim.moe.config import MoeConfig
from moesim.moe.corpus import DOMAINS, Document, read_corpus
from moesim.moe.data import Batches, streams
from moesim.moe.model import MoeModel
from moesim.moe.tokenizer import load_tokenizer, train_tokenizer
from moesim.moe.weights import save_model

TOKENIZER_BYTES = 1_500_000


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Parameters
    ----------
    tokens
        Length of the run, and of the cosine schedule, unless `minutes` ends it first.
    minutes
        Wall-clock budget; the schedule then follows whichever of the two is further on.
    rows
        Sequences of a batch, a multiple of the number of domains.
    learning_rate
        Peak of the cosine schedule after `warmup` steps; it ends at a twentieth.
    balance_rate
        Step of the router biases for experts outside of the band `balance_low` to `balance_high`,
        in multiples of the mean load; it falls with the learning rate, so that the routing settles.
    balance_loss
        Coefficient of the sequence-wise auxiliary balance loss.
    """

    tokens: int = 8_000_000
    minutes: float | None = None
    rows: int = 8
    learning_rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.1
    balance_rate: float = 1e-2
    balance_low: float = 0.35
    balance_high: float = 2.5
    balance_loss: float = 6e-3
    seed: int = 0
    save_every: int = 50


def cosine(progress: float) -> float:
    """Fall from 1 to a twentieth along a cosine while `progress` runs from 0 to 1."""
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def make_optimizer(model: MoeModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; matrices but the embedding decay, norms do not."""
    matrices = [p for name, p in model.named_parameters() if p.dim() >= 2 and "embedding" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() < 2 or "embedding" in name]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


class Run:
    """A training run that can stop after any step and go on from its checkpoint as if it had not."""

    def __init__(self, config: MoeConfig, recipe: Recipe, batches: Batches, *, device: str = "cpu") -> None:
        self.recipe, self.batches, self.device = recipe, batches, torch.device(device)
        self.model = MoeModel(config).initialise(recipe.seed).to(self.device).train()
        self.optimizer = make_optimizer(self.model, recipe)
        self.step, self.elapsed_s = 0, 0.0
        self.step_tokens = recipe.rows * config.context

    @property
    def progress(self) -> float:
        """Share of the run that is done, by tokens or by the clock, whichever is further on."""
        by_tokens = self.step * self.step_tokens / self.recipe.tokens
        by_clock = self.elapsed_s / (60 * self.recipe.minutes) if self.recipe.minutes else 0.0
        return max(by_tokens, by_clock)

    def advance(self) -> dict[str, Any]:
        """Take one step and return its metrics."""
        start = time.perf_counter()
        inputs, targets = (t.to(self.device) for t in self.batches[self.step])
        decay = cosine(self.progress)
        rate = self.recipe.learning_rate * min(1.0, (self.step + 1) / self.recipe.warmup) * decay
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits, balance = self.model(inputs)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        (loss + self.recipe.balance_loss * balance).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for router in self.model.routers():
            router.nudge(self.recipe.balance_rate * decay, low=self.recipe.balance_low, high=self.recipe.balance_high)
        self.step += 1
        wall_s = time.perf_counter() - start
        self.elapsed_s += wall_s
        loads = [router.load * router.load.numel() for router in self.model.routers()]
        return {
            "step": self.step,
            "tokens": self.step * self.step_tokens,
            "loss": round(loss.item(), 4),
            "learning_rate": rate,
            "gradient_norm": round(norm.item(), 4),
            "max_over_mean": [round(load.max().item(), 3) for load in loads],
            "min_over_mean": [round(load.min().item(), 3) for load in loads],
            "tokens_per_s": round(self.step_tokens / wall_s, 1),
            "elapsed_s": round(self.elapsed_s, 1),
        }

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically."""
        with atomic_path(path) as temporary:
            torch.save(
                {
                    "config": asdict(self.model.config),
                    "recipe": asdict(self.recipe),
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "step": self.step,
                    "elapsed_s": self.elapsed_s,
                },
                temporary,
            )

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same model and recipe.

        Raises
        ------
        InputError
            The checkpoint was made with another configuration or recipe.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        for name, mine in (("config", asdict(self.model.config)), ("recipe", asdict(self.recipe))):
            changed = [key for key, value in mine.items() if state[name].get(key) != value and key != "save_every"]
            if changed:
                raise InputError(f"{path}: made with another {name} ({', '.join(changed)}); delete it or restore those")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_s = int(state["step"]), float(state["elapsed_s"])


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
    tokenizer.save(str(path))
    return tokenizer


def train(
    corpus: str | Path, out: str | Path, *, config: MoeConfig | None = None, recipe: Recipe | None = None,
    device: str = "cpu", quiet: bool = False,
) -> MoeModel:  # fmt: skip
    """Train a model and write it to `out` (weights, tokenizer, `metrics.jsonl`, `checkpoint.pt`).

    A checkpoint in `out` is resumed. Progress goes to stderr unless `quiet`.

    Parameters
    ----------
    corpus
        Folder written by `python -m moesim.moe.corpus`.
    out
        Folder of the run; a `tokenizer.json` found there is used, else one is learnt.
    device
        Torch device; on CUDA the forward pass runs in bfloat16 autocast.

    Raises
    ------
    MoesimError
        The corpus or the checkpoint does not fit.
    """
    config, recipe, out = config or MoeConfig(), recipe or Recipe(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    documents = read_corpus(corpus, part="train")
    tokenizer = ensure_tokenizer(documents, out / "tokenizer.json", config.vocabulary)
    batches = Batches(streams(documents, tokenizer), rows=recipe.rows, length=config.context, seed=recipe.seed)
    run = Run(config, recipe, batches, device=device)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        run.resume(checkpoint)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.1f}%"),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=Console(stderr=True), disable=quiet) as bar,
        (out / "metrics.jsonl").open("a", encoding="utf-8", buffering=1) as metrics,
    ):
        task = bar.add_task("training", total=1.0)
        bar.update(task, completed=min(run.progress, 1.0))
        while run.progress < 1.0:
            record = run.advance()
            metrics.write(json.dumps(record) + "\n")
            if run.step % recipe.save_every == 0:
                run.save(checkpoint)
            bar.update(task, completed=min(run.progress, 1.0), description=f"training, loss {record['loss']:.3f}")
    run.save(checkpoint)
    model = run.model.eval()
    save_model(model, tokenizer, out)
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m moesim.moe.train", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by `python -m moesim.moe.corpus`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; resumed if it holds a checkpoint")
    parser.add_argument("--config", type=Path, help="JSON file of the model (default: the bundled model)")
    parser.add_argument("--dense", action="store_true", help="train the dense model of the same active size")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--minutes", type=float, help="wall-clock budget")
    parser.add_argument("--tokens", type=int, default=Recipe.tokens)
    parser.add_argument("--rows", type=int, default=Recipe.rows, help="sequences of a batch")
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--balance-rate", type=float, default=Recipe.balance_rate)
    parser.add_argument("--balance-loss", type=float, default=Recipe.balance_loss)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = Recipe(
        tokens=options.tokens, minutes=options.minutes, rows=options.rows, learning_rate=options.learning_rate,
        balance_rate=options.balance_rate, balance_loss=options.balance_loss, seed=options.seed,
    )  # fmt: skip
    try:
        config = MoeConfig.read(options.config) if options.config else MoeConfig()
        train(options.corpus, options.out, config=config.dense() if options.dense else config, recipe=recipe,
              device=options.device)  # fmt: skip
    except MoesimError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
