"""Packing: units of text to documents, split by seed into parts that share no unit, written as Parquet."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moesim.base.errors import MoesimError
from moesim.base.files import atomic_path

DOMAINS: tuple[str, ...] = ("math", "code", "lexicon", "narrative", "german", "russian", "japanese", "chinese")
PARTS: tuple[str, ...] = ("train", "fit", "eval", "validation")

# Shares of the units; a trace needs a few hundred prompts of each domain, validation a few thousand tokens.
SHARES: dict[str, float] = {"train": 0.89, "fit": 0.04, "eval": 0.04, "validation": 0.03}
DOCUMENT_BYTES = 4000
SHORTEST_BYTES = 200


@dataclass(frozen=True)
class Document:
    """One document of the corpus: plain text with its domain, its part, and the unit it was cut from."""

    domain: str
    part: str
    unit: int
    text: str


def gather(entries: Iterable[str], *, size_bytes: int = DOCUMENT_BYTES, joint: str = "\n\n") -> Iterator[str]:
    """Neighbouring short entries joined to units of about `size_bytes`."""
    unit, size = list[str](), 0
    for entry in entries:
        unit.append(entry)
        size += len(entry.encode())
        if size >= size_bytes:
            yield joint.join(unit)
            unit, size = [], 0
    if unit:
        yield joint.join(unit)


def cut(text: str, *, size_bytes: int = DOCUMENT_BYTES) -> Iterator[str]:
    """A long unit cut at blank lines, else at line ends, to documents of about `size_bytes`."""
    joint = "\n\n" if "\n\n" in text else "\n"
    for piece in gather(re.split(joint, text), size_bytes=size_bytes, joint=joint):
        if len(piece.encode()) > 3 * size_bytes and joint == "\n\n":
            yield from gather(piece.split("\n"), size_bytes=size_bytes, joint="\n")
        else:
            yield piece


def split(
    domain: str, units: Sequence[str], *, cap_bytes: int, seed: int, shares: Mapping[str, float] = SHARES
) -> list[Document]:
    """Shuffle units, keep `cap_bytes` of them, deal them into the parts and cut them to documents.

    Returns
    -------
    Documents in shuffled order of their units. The same seed and units give the same documents.
    """
    order = list(range(len(units)))
    random.Random(f"{seed}:{domain}").shuffle(order)
    kept, size = list[int](), 0
    for unit in order:
        if size >= cap_bytes:
            break
        kept.append(unit)
        size += len(units[unit].encode())
    documents, start = list[Document](), 0
    for part in PARTS:
        stop = len(kept) if part == PARTS[-1] else start + round(shares[part] * len(kept))
        for unit in kept[start:stop]:
            for text in cut(units[unit]):
                if len(text.encode()) >= SHORTEST_BYTES:
                    documents.append(Document(domain, part, unit, text))
        start = stop
    return documents


def write_corpus(documents: Sequence[Document], path: Path) -> None:
    """Write documents as one Parquet file (columns domain, part, unit, text; zstd), atomically."""
    table = pa.table(
        {
            "domain": pa.array([d.domain for d in documents]).dictionary_encode(),
            "part": pa.array([d.part for d in documents]).dictionary_encode(),
            "unit": pa.array([d.unit for d in documents], pa.int32()),
            "text": [d.text for d in documents],
        }
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=12)


def read_corpus(path: str | Path, *, part: str | None = None, domain: str | None = None) -> list[Document]:
    """Read the packed corpus, or one part or domain of it.

    Raises
    ------
    MoesimError
        The file is absent or is not a packed corpus, or has no such part or domain.
    """
    path = Path(path)
    if path.is_dir() or not (path.suffix or path.exists()):
        path = path / "corpus.parquet"
    if not path.is_file():
        raise MoesimError(f"{path}: no corpus here; make one with `python -m moesim.moe.corpus --out {path.parent}`")
    wanted = [(name, "=", value) for name, value in (("part", part), ("domain", domain)) if value is not None]
    try:
        table = pq.read_table(path, columns=["domain", "part", "unit", "text"], filters=wanted or None)
    except (pa.ArrowException, OSError) as error:
        raise MoesimError(f"{path}: not a packed corpus ({str(error).splitlines()[0]}); make it again") from error
    if table.num_rows == 0:
        raise MoesimError(f"{path}: no documents with part={part!r}, domain={domain!r}; parts: {', '.join(PARTS)}")
    return [Document(**row) for row in table.to_pylist()]
