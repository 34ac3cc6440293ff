"""The tokenizer: byte-level BPE, so that no text is out of vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from moesim.base.errors import FormatError

END = "<|end|>"
END_ID = 0  # begins every sequence and ends every document


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn a byte-level BPE of `vocabulary` tokens; token 0 is `END`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer file.

    Raises
    ------
    FormatError
        The file is absent or is not a tokenizer.
    """
    try:
        return Tokenizer.from_str(Path(path).read_text("utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise FormatError(path, "", f"expected a tokenizer in JSON, found {error}") from None


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, without `END`."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
