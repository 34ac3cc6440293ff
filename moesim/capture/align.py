"""Which token each recorded row was: padding left out, prompts and answers told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.capture.recorder import Taken
from moesim.trace import DECODE, PREFILL


@dataclass(frozen=True, eq=False)
class Seen:
    """A batch that ran.

    Parameters
    ----------
    mask
        1 for tokens of prompts, 0 for padding, [sequences, longest prompt].
    tokens
        Prompts and what was generated, [sequences, length]; of an encoder-decoder, what its decoder made.
    prompt
        Length of the longest prompt.
    ends
        Ids that end an answer.
    encoder
        Whether prompts went through an encoder and `tokens` through a decoder.
    """

    mask: Array
    tokens: Array
    prompt: int
    ends: tuple[int, ...]
    encoder: bool = False


class Rows(NamedTuple):
    """Tokens by sequence and position: sequence, position and phase [tokens], experts and weights [tokens, L, K]."""

    sequence: NDArray[np.int64]
    position: NDArray[np.int64]
    phase: NDArray[np.int64]
    experts: NDArray[np.int16]
    weights: NDArray[np.float16] | None


def rows_of(seen: Seen, taken: Sequence[Taken]) -> Rows:
    """Return the rows of a batch that are tokens, in order.

    Parameters
    ----------
    taken
        What the recorder saw: of a decoder alone one tower, of an encoder and a decoder one each.

    Raises
    ------
    InputError
        If the recorded rows are not those of the batch.
    """
    if seen.encoder:
        grids = [(seen.mask, False), (_alive(seen, 0), True)]
    else:
        prompts = np.concatenate([seen.mask, _alive(seen, seen.prompt)], axis=1)
        grids = [(prompts, False)]
    if len(taken) != len(grids):
        raise InputError(
            f"capture: {len(taken)} stacks of layers saw tokens, expected {len(grids)}; is this a model of text?"
        )
    parts = [_grid(part, valid, seen, decoder) for part, (valid, decoder) in zip(taken, grids, strict=True)]
    joined = [np.concatenate([part[i] for part in parts]) for i in range(4)]
    weights = np.concatenate([part[4] for part in parts if part[4] is not None]) if parts[0][4] is not None else None
    sequence, position, phase, experts = joined
    # of an encoder-decoder, the answer goes on where the prompt ends
    order = np.lexsort((position, sequence))
    return Rows(
        sequence[order], position[order], phase[order], experts[order], None if weights is None else weights[order]
    )


def _alive(seen: Seen, first: int) -> Array:
    """Return 1 for generated tokens that were fed back [sequences, columns]: those before an end, but the last."""
    answer = seen.tokens[:, first:]
    # the start token of a decoder may be an end token as well
    ended = np.isin(answer, seen.ends)
    if seen.encoder:
        ended[:, :1] = False
    return np.asarray(~np.logical_or.accumulate(ended, axis=1)[:, :-1], np.int64)


def _grid(part: Taken, valid: Array, seen: Seen, decoder: bool) -> tuple[Array, Array, Array, Array, Array | None]:
    sequences = len(valid)
    _, index, tokens = np.unique(part.step, return_inverse=True, return_counts=True)
    if (tokens % sequences).any() or len(part.step) != valid.size:
        raise InputError(
            f"capture: the routers saw {count(len(part.step), 'token')} of a batch of {count(sequences, 'sequence')} "
            f"with {valid.shape[1]} each; this model splits its input in a way that cannot be followed: use "
            "moesim.capture(model) in a loop of your own"
        )
    # a pass sees some columns of every sequence, one sequence after another
    length = tokens // sequences
    place = np.arange(len(index)) - (np.cumsum(tokens) - tokens)[index]
    row = place // length[index]
    column = place % length[index] + (np.cumsum(length) - length)[index]
    before = np.cumsum(valid, axis=1) - 1
    chosen = valid[row, column].astype(bool)
    row, column = row[chosen], column[chosen]
    place = before[row, column]
    answer = np.full(len(row), decoder) if seen.encoder else column >= seen.prompt
    if decoder:
        place = place + seen.mask.sum(axis=1)[row]
    phase = np.where(answer, DECODE, PREFILL)
    return row, place, phase, part.experts[chosen], None if part.weights is None else part.weights[chosen]
