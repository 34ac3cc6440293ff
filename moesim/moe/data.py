"""Training batches: equal shares of every domain, in an order that the step number alone decides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.moe.corpus import DOMAINS, Document
from moesim.moe.tokenizer import END_ID, encode


def streams(documents: Sequence[Document], tokenizer: Tokenizer) -> dict[str, NDArray[np.int64]]:
    """Return the documents of each domain as one sequence of tokens; `END` precedes each document."""
    result = {}
    for domain in DOMAINS:
        ids = encode(tokenizer, [document.text for document in documents if document.domain == domain])
        if ids:
            result[domain] = np.concatenate([np.array([END_ID, *row], dtype=np.int64) for row in ids])
    return result


class Batches:
    """Batch number n of a training run: the same for everyone who asks, so that a resumed run sees what it would have.

    Row i of a batch belongs to domain i modulo the number of domains. Each domain is cut into windows that are dealt
    in a seeded order, each once before any comes again.
    """

    def __init__(self, tokens: dict[str, NDArray[np.int64]], *, rows: int, length: int, seed: int) -> None:
        if rows % len(tokens):
            raise InputError(f"batch of {count(rows, 'sequence')}: must be a multiple of the {len(tokens)} domains")
        self._tokens, self._rows, self._length, self._seed = list(tokens.values()), rows, length, seed
        for domain, stream in tokens.items():
            if len(stream) <= length:
                raise InputError(f"domain {domain}: {count(len(stream), 'token')}, fewer than one window of {length}")

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of one step, int64 `[rows, length]` each."""
        rounds = self._rows // len(self._tokens)
        rows = [
            self._window(domain, step * rounds + index)
            for index in range(rounds)
            for domain in range(len(self._tokens))
        ]
        batch = torch.from_numpy(np.stack(rows))
        return batch[:, :-1], batch[:, 1:]

    def _window(self, domain: int, number: int) -> NDArray[np.int64]:
        stream = self._tokens[domain]
        count = (len(stream) - 1) // self._length
        epoch, index = divmod(number, count)
        order = np.random.default_rng([self._seed, domain, epoch]).permutation(count)
        start = int(order[index]) * self._length
        return stream[start : start + self._length + 1]
