"""Evaluation: loss of each domain, beside a unigram model of the training text and the dense model."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moesim.base.errors import MoesimError
from moesim.moe.corpus import DOMAINS, Document, read_corpus
from moesim.moe.data import streams
from moesim.moe.model import MoeModel
from moesim.moe.parallel import ALONE, Group
from moesim.moe.weights import BUNDLED, load_model


@torch.inference_mode()
def loss_of(model: MoeModel, stream: NDArray[np.int64]) -> float:
    """Return the mean negative log likelihood (nats per token) of a stream of documents.

    The stream is cut into windows of the model's context; every token but the first of the stream is asked for once.
    """
    length = model.config.context
    device = model.embedding.weight.device
    total, count = 0.0, 0
    for start in range(0, len(stream) - 1, length):
        window = torch.from_numpy(stream[start : start + length + 1]).to(device)[None]
        logits = model(window[:, :-1]).logits[0].float()
        total += float(nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
        count += window.shape[1] - 1
    return total / count


@torch.no_grad()
def domain_losses(
    model: MoeModel, streams_: Mapping[str, NDArray[np.int64]], *, windows: int, group: Group = ALONE
) -> dict[str, float]:
    """Return the mean loss (nats per token) of each domain on its first windows; processes share them.

    A forward pass holds a window of every domain, as a batch of training does: where tokens compete for experts, they
    do so with the same mix.

    Parameters
    ----------
    windows
        Most windows of the model's context that are taken of a domain; as many of each.
    """
    shortest = min(len(stream) for stream in streams_.values()) - 1
    span = min(model.config.context, shortest)
    # all processes must run the same number of rows; what fills up counts nothing
    names = list(streams_)
    padded = names + names[:1] * (-len(names) % group.size)
    own = range(len(padded))[group.share(len(padded))]
    device = model.embedding.weight.device
    total = torch.zeros(len(names), dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    count = min(windows, shortest // span)
    for number in range(count):
        cut = [streams_[padded[row]][number * span : (number + 1) * span + 1] for row in own]
        batch = torch.from_numpy(np.stack(cut)).to(device)
        logits = model(batch[:, :-1]).logits.float()
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").double().sum(1)
        real = [row for row in own if row < len(names)]
        total[real] += losses[: len(real)]
    model.train(was_training)
    total = group.mean(total) * group.size
    return {name: round(float(loss) / (count * span), 4) for name, loss in zip(names, total, strict=True)}


def unigram(streams_: Sequence[NDArray[np.int64]], vocabulary: int) -> NDArray[np.float64]:
    """Return the negative log probability (nats) of each token [vocabulary]; add-one smoothing."""
    counts = np.ones(vocabulary)
    for stream in streams_:
        counts += np.bincount(stream, minlength=vocabulary)
    return np.asarray(-np.log(counts / counts.sum()))


def bits_per_byte(nats_per_token: float, stream: NDArray[np.int64], documents: Sequence[Document]) -> float:
    """Convert a loss per token; end tokens carry no bytes, but their cost counts."""
    size = sum(len(document.text.encode()) for document in documents)
    return nats_per_token * len(stream) / size / math.log(2)


def evaluate(
    corpus: str | Path,
    folder: str | Path = BUNDLED,
    *,
    dense: str | Path | None = None,
    most_documents: int | None = None,
) -> list[dict[str, float | str | int]]:
    """Return a row a domain: loss (nats per token) and bits per byte of the model and of what it must beat.

    Columns: `model`, `dense` (if given), `unigram` (token frequencies of the training part, all domains mixed in equal
    shares) and `unigram_domain` (of the same domain's training part: knows the domain, which the others must find
    out), each also as `<name>_bits` per byte; `tokens` of the validation part.

    Parameters
    ----------
    most_documents
        Of each domain; default all.
    """
    bundle = load_model(folder)
    other = load_model(dense).model if dense is not None else None
    tables = streams(read_corpus(corpus, part="train"), bundle.tokenizer)
    documents = _first(read_corpus(corpus, part="validation"), most_documents)
    size = bundle.model.config.vocabulary
    shortest = min(len(stream) for stream in tables.values())
    mixed = unigram([stream[:shortest] for stream in tables.values()], size)
    rows = list[dict[str, float | str | int]]()
    for domain, stream in streams(documents, bundle.tokenizer).items():
        losses = {"model": loss_of(bundle.model, stream)}
        if other is not None:
            losses["dense"] = loss_of(other, stream)
        losses["unigram"] = float(mixed[stream[1:]].mean())
        losses["unigram_domain"] = float(unigram([tables[domain]], size)[stream[1:]].mean())
        own = [document for document in documents if document.domain == domain]
        bits = {f"{name}_bits": bits_per_byte(loss, stream, own) for name, loss in losses.items()}
        rows.append({"domain": domain, "tokens": len(stream), **losses, **bits})
    return rows


def _first(documents: list[Document], most: int | None) -> list[Document]:
    chosen = list[Document]()
    for domain in DOMAINS:
        chosen += [document for document in documents if document.domain == domain][:most]
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m moesim.moe.evaluate", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by `python -m moesim.moe.corpus`")
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--dense", type=Path, help="folder of the dense model's run")
    parser.add_argument("--most-documents", type=int, help="of each domain (default: all)")
    options = parser.parse_args(arguments)
    try:
        rows = evaluate(options.corpus, options.model, dense=options.dense, most_documents=options.most_documents)
    except MoesimError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
