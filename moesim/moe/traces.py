"""The bundled traces: documents served by the bundled model, recorded through the capture hook."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesim.base.errors import InputError, UnknownName
from moesim.capture import Request, Work, capture
from moesim.moe.corpus import DOMAINS, PARTS, Document, read_corpus
from moesim.moe.serve import serve
from moesim.moe.spec import MODEL_NAME, narrow, spec_of
from moesim.moe.tokenizer import END_ID, encode
from moesim.moe.weights import BUNDLED, Bundle, load_model
from moesim.spec import ModelSpec
from moesim.trace import DECODE, PREFILL, Trace, TraceWriter

# Chunks of a trace that are handed to the writer; bounds memory.
CHUNK_STEPS = 256


def make_requests(
    documents: Sequence[Document], bundle: Bundle, *, count: int, prompt_tokens: tuple[int, int] = (48, 400),
    new_tokens: tuple[int, int] = (32, 160), seed: int = 0,
) -> list[Request]:  # fmt: skip
    """Cut prompts out of documents, the same number for each domain, in a seeded mixed order.

    Each prompt is a passage that no other prompt overlaps, begins with the end token, and has a length drawn
    log-uniformly from `prompt_tokens`; how many tokens may follow is drawn log-uniformly from `new_tokens`.

    Parameters
    ----------
    count
        Number of requests; rounded down to a multiple of the number of domains.

    Raises
    ------
    InputError
        If the documents of a domain do not hold that many passages, or passages do not fit the model's context.
    """
    context = bundle.model.config.context
    if not 2 <= prompt_tokens[0] <= prompt_tokens[1] <= context:
        raise InputError(f"prompt_tokens {prompt_tokens}: expected bounds within 2..{context}, the model's context")
    generator = np.random.default_rng(seed)
    present = [domain for domain in DOMAINS if any(document.domain == domain for document in documents)]
    if not present:
        raise InputError("no documents to make requests of; expected documents of the packed corpus")
    requests = []
    for domain in present:
        texts = [document.text for document in documents if document.domain == domain]
        passages = _passages(encode(bundle.tokenizer, texts), prompt_tokens, generator)
        wanted = count // len(present)
        for _ in range(wanted):
            prompt = next(passages, None)
            if prompt is None:
                raise InputError(f"domain {domain}: its documents hold fewer than {wanted} prompts; ask for fewer")
            follow = min(_log_uniform(generator, new_tokens), context - len(prompt))
            requests.append(Request(prompt, follow, DOMAINS.index(domain)))
    return [requests[i] for i in generator.permutation(len(requests))]


def _passages(
    documents: list[list[int]], lengths: tuple[int, int], generator: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    # one passage of each document before the second of any, so that few documents do not stand for a domain
    rest = [documents[i] for i in generator.permutation(len(documents))]
    while rest:
        left = []
        for tokens in rest:
            length = _log_uniform(generator, lengths) - 1
            if len(tokens) >= lengths[0]:
                yield (END_ID, *tokens[:length])
                left.append(tokens[length:])
        rest = left


def _log_uniform(generator: np.random.Generator, bounds: tuple[int, int]) -> int:
    return round(float(np.exp(generator.uniform(np.log(bounds[0]), np.log(bounds[1])))))


def record_traffic(
    bundle: Bundle, requests: Sequence[Request], *, origin: dict[str, Any], keep_weights: bool = False, **serving: Any
) -> Iterator[Trace]:
    """Serve requests and yield their routing in chunks of some steps.

    Parameters
    ----------
    origin
        Of every chunk.
    serving
        Keyword arguments of `serve`.
    """
    spec = spec_of(bundle.model.config)
    steps: list[list[Work]] = []
    first = 0
    with capture(bundle.model, keep_weights=keep_weights) as recorder:
        for works in serve(bundle.model, requests, **serving):
            steps.append(works)
            if len(steps) == CHUNK_STEPS:
                yield _chunk(spec, first, steps, recorder.take(), origin)
                first, steps = first + len(steps), []
        if steps:
            yield _chunk(spec, first, steps, recorder.take(), origin)


def _chunk(spec: ModelSpec, first: int, steps: list[list[Work]], recorded: Any, origin: dict[str, Any]) -> Trace:
    rows = [
        (step, work.request, work.start + offset, DECODE if work.decode else PREFILL, work.domain)
        for step, works in enumerate(steps, start=first)
        for work in works
        for offset in range(len(work.tokens))
    ]
    step, request, position, phase, domain = np.array(rows).T
    routes, weights = recorded
    return Trace(
        spec, routes, weights, step=step, request=request, position=position, phase=phase, domain=domain,
        domains=DOMAINS, origin=origin,
    )  # fmt: skip


def capture_bundled(
    corpus: str | Path, out: str | Path, *, part: str = "eval", count: int = 520, seed: int = 0,
    weights: bool = False, prompt_tokens: tuple[int, int] = (48, 400), new_tokens: tuple[int, int] = (32, 160),
    model: str | Path = BUNDLED, device: str = "cpu", slots: int = 64, step_tokens: int = 512,
    chunk: int = 128, temperature: float = 0.8,
) -> Trace:  # fmt: skip
    """Serve documents of the corpus with the bundled model and write the routing as a trace file.

    Parameters
    ----------
    corpus
        Folder written by `python -m moesim.moe.corpus`.
    out
        Trace file (Parquet) to write.
    part
        Part of the corpus: its units are in no other part.
    count
        Number of requests, equally many for each domain.
    weights
        Whether gate weights are stored.
    prompt_tokens, new_tokens
        Bounds of the lengths, see `make_requests`.
    model
        Folder of the model.
    slots, step_tokens, chunk, temperature
        Of `serve`.

    Returns
    -------
    The trace that was written.

    Raises
    ------
    MoesimError
        If the corpus or the model cannot be read, or the corpus is too small.
    """
    if part not in PARTS:
        raise UnknownName("part of the corpus", part, PARTS)
    bundle = load_model(model, device=device)
    documents = read_corpus(corpus, part=part)
    requests = make_requests(
        documents, bundle, count=count, prompt_tokens=prompt_tokens, new_tokens=new_tokens, seed=seed
    )
    serving = {
        "slots": slots, "step_tokens": step_tokens, "chunk": chunk, "temperature": temperature, "seed": seed,
    }  # fmt: skip
    origin = {
        "captured_by": "moesim capture bundled",
        "model": MODEL_NAME,
        "weights_digest": bundle.digest,
        "router": bundle.model.config.router,
        "part": part,
        "requests": len(requests),
        "prompt_tokens": list(prompt_tokens),
        "new_tokens": list(new_tokens),
        "serving": serving,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
        "synthetic": False,
    }
    with TraceWriter(out, spec_of(bundle.model.config), origin, DOMAINS) as writer:
        for piece in record_traffic(bundle, requests, origin=origin, keep_weights=weights, **serving):
            writer.append(piece)
    return narrow(out, bundle.model.config)
