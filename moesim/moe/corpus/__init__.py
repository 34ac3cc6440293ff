"""The training corpus of the bundled model: fetched, cleaned and split by `python -m moesim.moe.corpus`."""

from __future__ import annotations

from moesim.moe.corpus.pack import DOMAINS, PARTS, Document, read_corpus

__all__ = ["DOMAINS", "PARTS", "Document", "read_corpus"]
