"""Trace files: Parquet, one row a token, one column a layer.

Columns ``step, request, position, source`` (int32), ``phase, domain`` (dictionary of names), ``experts_LL``
(fixed-size list<int16>[top_k]) and, where weights were recorded, ``weights_LL`` (fixed-size list<float16>[top_k]),
LL = number of the MoE layer. A trace of counts has one row a (step, layer): ``step, phase, domain, layer`` and
``counts`` (fixed-size list<int64>[experts]). The file metadata holds the header, JSON under the key `KEY`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moesim.base.arrays import Array
from moesim.base.errors import FormatError, InputError
from moesim.base.files import atomic_path
from moesim.spec import ModelSpec
from moesim.trace.header import IMPORT, KEY, SCHEMA_VERSION, Header, read_header, read_spec
from moesim.trace.trace import PHASES, Trace, layer_subset, plain

ROW_GROUP: Final = 65_536
"""Tokens in a row group: what a streaming reader holds in memory."""
_INTEGERS: Final = ("step", "request", "position", "source")
_NAMES: Final = pa.dictionary(pa.int16(), pa.string())
_BROKEN: Final = (OSError, pa.ArrowException, ValueError, MemoryError)
"""What Arrow raises on damaged files; our own errors are none of these."""


def sniff(path: str | Path) -> bool:
    """Return whether this is a Parquet file with the header of a trace, or one too broken to tell."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PAR1":
                return False
    except OSError:
        return False
    try:
        return KEY in (pq.read_metadata(path).metadata or {})
    except _BROKEN:
        return True


def write(trace: Trace, path: str | Path) -> None:
    """Write a trace atomically."""
    with TraceWriter(path, trace.spec, trace.origin, domains=trace.domains, keep_partial=False) as writer:
        for first in range(0, max(trace.rows, 1), ROW_GROUP):
            writer.append(trace.select(np.arange(first, min(first + ROW_GROUP, trace.rows))))


class TraceWriter:
    """Write a trace chunk by chunk; memory is bounded by a row group, not by the trace.

    Parquet can be read once its footer is written, which is when the writer closes. Leaving the ``with`` block
    by an exception or Ctrl-C closes it too: all that was appended is kept and the origin says
    ``"interrupted": true``. The file appears under its name only then, so a killed process leaves no
    half-written trace (and loses what it had captured).

    Parameters
    ----------
    path
        The file to write.
    spec
        The model of every chunk.
    origin
        Who captured it, from what, with which versions.
    domains
        Names of domain codes, as far as they are known; chunks may bring others.
    keep_partial
        Whether what was appended is kept when the block is left by an exception.
    """

    def __init__(
        self,
        path: str | Path,
        spec: ModelSpec,
        origin: Mapping[str, Any],
        domains: Sequence[str] = (),
        keep_partial: bool = True,
    ) -> None:
        self.path, self.spec, self.origin = Path(path), spec, plain(origin)
        self.domains = list(domains)
        self.keep_partial = keep_partial
        self.rows = 0
        self._kind: Literal["tokens", "counts"] = "tokens"
        self._schema: pa.Schema | None = None
        self._file: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> TraceWriter:
        self._temporary = self._stack.enter_context(atomic_path(self.path))
        return self

    def append(self, chunk: Trace) -> None:
        """Append a trace of the same model; rows are written as soon as a row group is full.

        Raises
        ------
        InputError
            If the model differs, or weights or routes are there in some chunks only.
        """
        if chunk.spec != self.spec:
            raise InputError(f"{self.path}: cannot append a trace of {chunk.spec.name!r} to one of {self.spec.name!r}")
        self.domains += [name for name in chunk.domains if name not in self.domains]
        table = _token_table(chunk) if chunk.routes is not None else _count_table(chunk)
        if self._schema is None:
            self._schema, self._kind = table.schema, "tokens" if chunk.routes is not None else "counts"
        elif table.schema != self._schema:
            raise InputError(f"{self.path}: cannot mix chunks with and without routes or weights in one trace")
        self._waiting.append(table)
        self.rows += chunk.rows
        self._flush(ROW_GROUP)

    def _flush(self, at_least: int) -> None:
        if sum(table.num_rows for table in self._waiting) < at_least:
            return
        table = pa.concat_tables(self._waiting).unify_dictionaries()
        full = table.num_rows // at_least * at_least
        self._open().write_table(table.slice(0, full), row_group_size=ROW_GROUP)
        # a copy, or the slice would keep the whole table alive
        rest = table.slice(full)
        self._waiting = [rest.take(pa.array(np.arange(rest.num_rows)))] if rest.num_rows else []

    def _open(self) -> pq.ParquetWriter:
        if self._file is None:
            self._file = self._stack.enter_context(
                pq.ParquetWriter(
                    self._temporary, self._schema, compression="zstd", compression_level=9, write_page_checksum=True
                )
            )
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and (self.rows == 0 or not self.keep_partial):
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if self._schema is None:
                raise InputError(f"{self.path}: nothing was appended, so there is no trace to write")
            self._flush(1)
            header = Header(
                schema=SCHEMA_VERSION,
                kind=self._kind,
                spec=self.spec.to_dict(),
                domains=self.domains,
                origin=self.origin | ({"interrupted": True} if error is not None else {}),
            )
            text = header.model_dump_json(by_alias=True)
            self._open().add_key_value_metadata({KEY.decode(): text})


def _names(codes: Array, names: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int16)), pa.array(names, pa.string()))


def _token_table(trace: Trace) -> pa.Table:
    columns: dict[str, Any] = {name: pa.array(getattr(trace, name)) for name in _INTEGERS}
    columns |= {"phase": _names(trace.phase, PHASES), "domain": _names(trace.domain, trace.domains)}
    for name, array in (("experts", trace.routes), ("weights", trace.weights)):
        if array is not None:
            for layer in range(trace.layers):
                flat = pa.array(np.ascontiguousarray(array[:, layer]).ravel())
                columns[f"{name}_{layer:02d}"] = pa.FixedSizeListArray.from_arrays(flat, trace.spec.top_k)
    return pa.table(columns)


def _count_table(trace: Trace) -> pa.Table:
    L = trace.layers
    flat = pa.array(np.ascontiguousarray(trace.counts).ravel())
    return pa.table(
        {
            "step": pa.array(np.repeat(trace.step, L)),
            "phase": _names(np.repeat(trace.phase, L), PHASES),
            "domain": _names(np.repeat(trace.domain, L), trace.domains),
            "layer": pa.array(np.tile(np.arange(L, dtype=np.int16), trace.rows)),
            "counts": pa.FixedSizeListArray.from_arrays(flat, trace.spec.experts),
        }
    )


def read(path: str | Path, layers: Sequence[int] | None = None) -> Trace:
    """Read a trace, or only some MoE layers of it (ordinals, ascending).

    Raises
    ------
    FormatError
        If the file is not a complete trace file of this schema.
    """
    with _opened(path) as (file, header, spec):
        if header.kind == "counts":
            trace = _counts(path, file.read(), header, spec)
            return trace if layers is None else trace.of_layers(layers)
        chosen = range(spec.layers) if layers is None else layers
        spec = layer_subset(spec, chosen)
        return _tokens(path, file.read(columns=_columns(file, chosen)), header, spec, chosen)


def iter_chunks(path: str | Path, tokens: int = ROW_GROUP, layers: Sequence[int] | None = None) -> Iterator[Trace]:
    """Yield a trace in chunks of at most ``tokens`` tokens, in file order; memory is bounded by a row group.

    Raises
    ------
    FormatError
        If the file is not a complete trace file of this schema.
    """
    if tokens < 1:
        raise InputError(f"iter_chunks: tokens must be at least 1, got {tokens}")
    with _opened(path) as (file, header, spec):
        if header.kind == "counts":
            raise FormatError(path, "kind", "expected a trace of tokens, found counts only; read it whole")
        chosen = range(spec.layers) if layers is None else layers
        spec = layer_subset(spec, chosen)
        columns = _columns(file, chosen)
        for group in range(file.num_row_groups):
            # iter_batches() would do, but it keeps what it has read of earlier row groups
            table = file.read_row_group(group, columns=columns)
            for first in range(0, table.num_rows, tokens):
                yield _tokens(path, table.slice(first, tokens), header, spec, chosen)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[pq.ParquetFile, Header, ModelSpec]]:
    """Open a file, check its header, and turn what Arrow finds wrong into one line."""
    if not Path(path).is_file():
        raise FormatError(path, "", "no such file; give the path of a trace")
    try:
        with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            header = read_header(path, file.metadata.metadata or {})
            yield file, header, read_spec(path, header)
    except _BROKEN as error:
        problem = " ".join(str(error).split()).rstrip(".")
        advice = f"if it was copied, copy it again; {IMPORT}"
        raise FormatError(path, "", f"not a complete Parquet file ({problem}); {advice}") from None


def _columns(file: pq.ParquetFile, layers: Sequence[int]) -> list[str]:
    lists = [f"experts_{layer:02d}" for layer in layers]
    if any(name.startswith("weights_") for name in file.schema_arrow.names):
        lists += [f"weights_{layer:02d}" for layer in layers]
    # a column that is not there is silently left out by Arrow; _column() reports it
    return [*_INTEGERS, "phase", "domain", *lists]


def _tokens(path: str | Path, table: pa.Table, header: Header, spec: ModelSpec, layers: Sequence[int]) -> Trace:
    shape = (table.num_rows, len(layers), spec.top_k)
    routes = np.empty(shape, np.int16)
    weighted = any(name.startswith("weights_") for name in table.column_names)
    weights = np.empty(shape, np.float16) if weighted else None
    for i, layer in enumerate(layers):
        routes[:, i] = _lists(path, table, f"experts_{layer:02d}", pa.int16(), spec.top_k)
        if weights is not None:
            weights[:, i] = _lists(path, table, f"weights_{layer:02d}", pa.float16(), spec.top_k)
    return _trace(
        path,
        spec=spec,
        routes=_frozen(routes),
        weights=None if weights is None else _frozen(weights),
        **{name: _integers(path, table, name) for name in _INTEGERS},
        phase=_codes(path, table, "phase", PHASES),
        domain=_codes(path, table, "domain", header.domains),
        domains=tuple(header.domains),
        origin=header.origin,
    )


def _counts(path: str | Path, table: pa.Table, header: Header, spec: ModelSpec) -> Trace:
    L = spec.layers
    layer = _integers(path, table, "layer")
    if len(layer) % L or (layer != np.tile(np.arange(L), len(layer) // L)).any():
        raise FormatError(path, "layer", f"expected the layers 0..{L - 1} of each step in order; write the trace again")
    counts = _lists(path, table, "counts", pa.int64(), spec.experts)
    return _trace(
        path,
        spec=spec,
        given_counts=_frozen(counts.reshape(-1, L, spec.experts)),
        step=_integers(path, table, "step")[::L],
        phase=_codes(path, table, "phase", PHASES)[::L],
        domain=_codes(path, table, "domain", header.domains)[::L],
        domains=tuple(header.domains),
        origin=header.origin,
    )


def _trace(path: str | Path, **parts: Any) -> Trace:
    try:
        return Trace(**parts)
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(path, "", f"{error}; write or capture the trace again") from None


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array


def _column(path: str | Path, table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise FormatError(path, name, "expected this column, found none; write the trace again")
    column = table.column(name)
    if column.null_count:
        raise FormatError(path, name, f"expected no empty values, found {column.null_count}; write the trace again")
    return column


def _integers(path: str | Path, table: pa.Table, name: str) -> Array:
    column = _column(path, table, name)
    if not pa.types.is_integer(column.type):
        raise FormatError(path, name, f"expected integers, found {column.type}; write the trace again")
    return np.asarray(column.to_numpy())


def _lists(path: str | Path, table: pa.Table, name: str, kind: pa.DataType, length: int) -> Array:
    """Return a column of equally long lists, [rows, length]."""
    column = _column(path, table, name)
    found = column.type
    if not pa.types.is_fixed_size_list(found) or found.list_size != length or found.value_type != kind:
        raise FormatError(path, name, f"expected lists of {length} {kind} values, found {found}; write the trace again")
    parts = [chunk.flatten() for chunk in column.chunks]
    if any(part.null_count for part in parts):
        raise FormatError(path, name, "expected no empty values in its lists; write the trace again")
    flat = [part.to_numpy(zero_copy_only=False) for part in parts]
    return np.concatenate(flat or [np.empty(0, kind.to_pandas_dtype())]).reshape(-1, length)


def _codes(path: str | Path, table: pa.Table, name: str, known: Sequence[str]) -> Array:
    """Return codes of a column of names, in the order of ``known``."""
    column = _column(path, table, name)
    parts = [np.empty(0, np.int16)]
    for chunk in column.chunks:
        chunk = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        names = chunk.dictionary.to_pylist()
        if unknown := [found for found in names if found not in known]:
            raise FormatError(path, name, f"{unknown[0]!r} is not one of {', '.join(known)}; write the trace again")
        code = np.array([known.index(found) for found in names], np.int16)
        parts.append(code[chunk.indices.to_numpy(zero_copy_only=False)])
    return np.concatenate(parts)
