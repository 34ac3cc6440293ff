"""Prompts to run through a model: text, JSON, CSV or Parquet, as serving benchmarks and data sets keep them."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from moesim.base.errors import FormatError, InputError

TEXT: Final = ("prompt", "text", "question", "instruction", "content", "input", "body", "turns")
MESSAGES: Final = ("messages", "conversations", "conversation")
TOKENS: Final = ("input_ids", "prompt_token_ids", "tokens")
DOMAIN: Final = ("domain", "category", "subject", "dataset", "source")
"""Names under which data sets keep these, in the order in which they are looked for."""
_ROLES: Final = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
_KINDS: Final = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Prompt:
    """One prompt: text, token ids, or messages of a chat (exactly one of them).

    Parameters
    ----------
    number
        Its place in the file, from 0; the request in the trace.
    text, tokens, messages
        What is asked.
    domain
        Name of its domain.
    """

    number: int
    text: str | None = None
    tokens: tuple[int, ...] | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    domain: str = "unlabelled"


def read_prompts(
    path: str | Path, *, column: str | None = None, domain: str | None = None, limit: int | None = None
) -> list[Prompt]:
    """Read prompts.

    Parameters
    ----------
    path
        ``.txt``: one prompt a line. ``.jsonl``, ``.json`` (a list), ``.csv``, ``.tsv`` or ``.parquet``: one a row, its
        text, messages (OpenAI's or ShareGPT's) or token ids under one of the names above.
    column, domain
        Name of the column of prompts and of domains, where they have other names.
    limit
        Read only so many, the first.

    Raises
    ------
    FormatError
        If the file cannot be read, or a row holds no prompt.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: expected at least 1 prompt, got {limit}")
    found = []
    for number, (place, row) in enumerate(islice(_rows(Path(path)), limit)):
        found.append(_prompt(path, place, number, row, column, domain))
    if not found:
        raise FormatError(path, "", "expected prompts, found none")
    return found


def digest_of(path: str | Path) -> str:
    """Return 16 hex digits that name the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise FormatError(path, "", f"expected a file of prompts ({', '.join(_KINDS)}), found {kind or 'no suffix'!r}")
    try:
        if kind == ".parquet":
            yield from _parquet(path)
            return
        with open(path, encoding="utf-8", newline="" if kind in (".csv", ".tsv") else None) as file:
            if kind == ".json":
                content = json.load(file)
                for number, row in enumerate(content if isinstance(content, list) else [content]):
                    yield f"item {number}", row
            elif kind in (".csv", ".tsv"):
                csv.field_size_limit(1 << 27)
                for number, row in enumerate(csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ","), 2):
                    yield f"line {number}", row
            else:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield f"line {number}", line.rstrip("\r\n") if kind == ".txt" else json.loads(line)
    except OSError as error:
        raise FormatError(path, "", f"cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError, csv.Error) as error:
        problem = " ".join(str(error).split())[:200]
        raise FormatError(path, "", f"expected {kind[1:]} in UTF-8, found {problem}") from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(256):
                for row in batch.to_pylist():
                    yield f"row {number}", row
                    number += 1
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None


def _prompt(path: str | Path, place: str, number: int, row: Any, column: str | None, domain: str | None) -> Prompt:
    if isinstance(row, str):
        return _checked(path, place, Prompt(number, text=row))
    if not isinstance(row, Mapping):
        raise FormatError(path, place, f"expected an object with a prompt, found {type(row).__name__}")
    names = (column,) if column is not None else (*TOKENS, *MESSAGES, *TEXT)
    name = next((name for name in names if row.get(name) not in (None, "")), None)
    if name is None:
        has = ", ".join(map(str, row)) or "nothing"
        wanted = repr(column) if column is not None else f"one of {', '.join(names)}"
        raise FormatError(path, place, f"expected a prompt under {wanted}, found {has:.200}; name its column")
    label = next((row[key] for key in ((domain,) if domain else DOMAIN) if row.get(key) not in (None, "")), None)
    if domain is not None and label is None:
        raise FormatError(path, f"{place}, {domain}", "expected the name of a domain, found none")
    value = row[name]
    where = f"{place}, {name}"
    label = "unlabelled" if label is None else str(label)
    if isinstance(value, str):
        return _checked(path, where, Prompt(number, text=value, domain=label))
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return _checked(path, where, Prompt(number, tokens=tuple(value), domain=label))
    if isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
        # a benchmark of several turns: the first is a prompt as it is
        return _checked(path, where, Prompt(number, text=value[0], domain=label))
    return _checked(path, where, Prompt(number, messages=_messages(path, where, value), domain=label))


def _messages(path: str | Path, place: str, value: Any) -> tuple[Mapping[str, str], ...]:
    """Return a chat up to what the user said last."""
    found: list[Mapping[str, str]] = []
    for turn in value if isinstance(value, list) else [None]:
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        text = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if not isinstance(role, str) or not isinstance(text, str):
            raise FormatError(path, place, "expected text, token ids, or messages with role and content")
        found.append({"role": _ROLES.get(role, role), "content": text})
    while found and found[-1]["role"] != "user":
        found.pop()
    if not found:
        raise FormatError(path, place, "expected a message of the user, found none")
    return tuple(found)


def _checked(path: str | Path, place: str, prompt: Prompt) -> Prompt:
    if prompt.tokens is not None and any(not 0 <= token < 2**31 for token in prompt.tokens):
        raise FormatError(path, place, "expected token ids from 0 up")
    if prompt.text is not None and not prompt.text.strip():
        raise FormatError(path, place, "expected a prompt, found blank text")
    return prompt
