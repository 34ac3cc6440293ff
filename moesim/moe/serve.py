"""Serving: requests run through the model by continuous batching, with a KV cache and seeded sampling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moesim.base.errors import InputError
from moesim.capture import Batcher, Request, Work
from moesim.moe.cache import Cache, Past
from moesim.moe.model import MoeModel
from moesim.moe.tokenizer import END_ID


def serve(
    model: MoeModel, requests: Iterable[Request], *, slots: int = 64, step_tokens: int = 512, chunk: int = 128,
    temperature: float = 0.8, seed: int = 0,
) -> Iterator[list[Work]]:  # fmt: skip
    """Run requests to their end and yield what ran, step by step.

    The forward passes of a step see its tokens in the order of the yielded works. A request ends early where the
    model ends the document.

    Parameters
    ----------
    slots, step_tokens, chunk
        Of the `Batcher`.
    temperature
        Of sampling; 0 takes the likeliest token.
    seed
        With the request's number and the position it decides a sample, whatever else is in the batch.

    Raises
    ------
    InputError
        If a request is longer than the model's context.
    """
    device = model.embedding.weight.device
    cache = Cache(model.config, slots, device)
    batcher = Batcher(_checked(requests, model.config.context), slots=slots, step_tokens=step_tokens, chunk=chunk)
    for works in batcher:
        # neighbours of one length run as one rectangular batch: all decodes, and full chunks of prompts
        for _, group in groupby(works, key=lambda work: (work.decode, len(work.tokens))):
            batch = list(group)
            logits = _forward(model, cache, batch, device)
            for work, token in zip(batch, _sample(logits, batch, temperature, seed), strict=True):
                if work.sample and token == END_ID:
                    batcher.end(work.request)
                elif work.sample:
                    batcher.grow(work.request, int(token))
        yield works


def _checked(requests: Iterable[Request], context: int) -> Iterator[Request]:
    for number, request in enumerate(requests):
        length = len(request.prompt) + request.new_tokens
        if length > context:
            raise InputError(f"request {number}: {length} tokens, but the model's context holds {context}; shorten it")
        yield request


@torch.inference_mode()
def _forward(model: MoeModel, cache: Cache, works: Sequence[Work], device: torch.device) -> Tensor:
    """Return the logits after the last token of each work [works, vocabulary]; all have the same length."""
    tokens = torch.tensor([work.tokens for work in works], device=device)
    slots = torch.tensor([work.slot for work in works], device=device)
    start = torch.tensor([work.start for work in works], device=device)
    logits: Tensor = model(tokens, Past(cache, slots, start, tokens.shape[1])).logits
    return logits[:, -1].float()


def _sample(logits: Tensor, works: Sequence[Work], temperature: float, seed: int) -> NDArray[np.int64]:
    if temperature == 0:
        return np.asarray(logits.argmax(-1).cpu().numpy())
    uniform = [np.random.default_rng([seed, work.request, work.start + len(work.tokens)]).random() for work in works]
    cumulative = torch.softmax(logits.double() / temperature, dim=-1).cumsum(-1).cpu()
    # the first token whose cumulative probability exceeds the draw; rounding can leave the last sum below 1
    found = torch.searchsorted(cumulative, torch.tensor(uniform, dtype=torch.float64)[:, None], right=True)[:, 0]
    return np.asarray(found.clamp(max=logits.shape[-1] - 1).numpy())
