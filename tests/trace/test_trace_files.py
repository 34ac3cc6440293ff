"""Trace files: what is written is read back, whole, by layer or in chunks; what is broken is named."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_traces import law, lengths, random_trace, small_spec

from moesim.base.errors import FormatError, InputError
from moesim.trace import Trace, TraceWriter, iter_chunks, parquet, read_any


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trace.parquet"


def table_of(path) -> pa.Table:
    """The table of a trace file with its header, which Arrow does not hand over with the table."""
    return pq.read_table(path).replace_schema_metadata({parquet.KEY: pq.read_metadata(path).metadata[parquet.KEY]})


@law
@given(lengths=lengths, weighted=st.booleans(), decode=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 9))
def test_what_was_written_is_read_back(tmp_path_factory, lengths, weighted, decode, seed):
    trace = random_trace(seed, lengths, decode=decode, origin={"captured_by": "a test", "versions": {"a": [1, 2]}})
    if weighted:
        trace = dataclasses.replace(trace, weights=np.random.default_rng(seed).random(trace.routes.shape))
    path = tmp_path_factory.mktemp("law") / "trace.parquet"
    trace.write(path)
    assert Trace.read(path) == trace
    assert read_any(path) == trace


def test_all_columns_domains_and_dropped_picks_survive(trace, path):
    routes = trace.routes.copy()
    routes[3, 1] = -1
    trace = dataclasses.replace(trace, routes=routes)
    trace.write(path)
    assert Trace.read(path) == trace


def test_an_empty_trace_and_a_trace_of_counts_survive(trace, path):
    trace.select([]).write(path)
    assert Trace.read(path) == trace.select([])
    counted = Trace(trace.spec, given_counts=trace.counts, domain=[0, 1, 1, 0, 1], domains=("b", "a"), phase=[1] * 5)
    counted.write(path)
    assert Trace.read(path) == counted
    assert Trace.read(path, layers=[1]) == counted.of_layers([1])
    with pytest.raises(FormatError, match="counts only"):
        next(iter_chunks(path))


def test_one_layer_is_read_without_the_others(trace, path):
    trace.write(path)
    assert Trace.read(path, layers=[1]) == trace.of_layers([1])
    with pytest.raises(InputError, match=r"in 0\.\.1, got \[2\]"):
        Trace.read(path, layers=[2])
    # the other layer is not even there
    table = table_of(path)
    pq.write_table(table.drop_columns(["experts_00", "weights_00"]), path)
    assert Trace.read(path, layers=[1]) == trace.of_layers([1])
    with pytest.raises(FormatError, match="experts_00: expected this column, found none"):
        Trace.read(path)


def test_other_tools_open_it(trace, path):
    trace.write(path)
    table = table_of(path)
    assert table.column_names[:6] == ["step", "request", "position", "source", "phase", "domain"]
    assert table.schema.field("experts_01").type == pa.list_(pa.int16(), 2)
    assert table.schema.field("weights_01").type == pa.list_(pa.float16(), 2)
    row = table.slice(17, 1).to_pylist()[0]
    assert (row["phase"], row["domain"], row["step"]) == ("decode", "code", 2)
    assert row["experts_01"] == trace.routes[17, 1].tolist()
    header = json.loads(table.schema.metadata[parquet.KEY])
    assert header["schema"] == 1
    assert header["spec"]["experts"] == 8
    assert header["origin"] == {"captured_by": "a test", "synthetic": True}


def test_the_same_trace_gives_the_same_bytes(trace, tmp_path):
    for name in ("a", "b"):
        trace.write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_chunks_stream_in_file_order(path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP", 16)
    trace = random_trace(0, [10] * 5)
    trace.write(path)
    assert pq.ParquetFile(path).num_row_groups == 4
    chunks = list(iter_chunks(path, tokens=7))
    assert max(chunk.tokens for chunk in chunks) <= 7
    assert np.array_equal(np.concatenate([chunk.routes for chunk in chunks]), trace.routes)
    assert np.array_equal(np.concatenate([chunk.request for chunk in chunks]), trace.request)
    assert next(iter_chunks(path, layers=[1])).spec.layer_ids == (1,)
    with pytest.raises(InputError, match="at least 1"):
        next(iter_chunks(path, tokens=0))


def test_a_writer_takes_chunks_whose_domains_differ(trace, path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP", 16)
    with TraceWriter(path, trace.spec, {}) as writer:
        for name in ("law", "code"):
            part = trace.of_domain(name)
            writer.append(dataclasses.replace(part, domain=np.zeros(20), domains=(name,)))
        assert not path.exists()
    back = Trace.read(path)
    assert back.domains == ("law", "code")
    assert back.of_domain("code").routes.tolist() == trace.of_domain("code").routes.tolist()


def test_an_interrupted_capture_keeps_what_was_appended(trace, path):
    def capture():
        with TraceWriter(path, trace.spec, trace.origin) as writer:
            writer.append(trace.window(0, 2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture()
    back = Trace.read(path)
    assert back.routes.tolist() == trace.window(0, 2).routes.tolist()
    assert back.origin == {**trace.origin, "interrupted": True}


def test_an_interrupted_write_leaves_the_old_file(trace, path, monkeypatch):
    trace.write(path)
    monkeypatch.setattr(parquet, "ROW_GROUP", 16)
    append = TraceWriter.append

    def interrupt(writer, chunk):
        append(writer, chunk)
        raise KeyboardInterrupt

    monkeypatch.setattr(TraceWriter, "append", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trace.select(np.arange(20)).write(path)
    assert Trace.read(path) == trace
    assert list(path.parent.iterdir()) == [path]


def test_a_capture_of_nothing_leaves_nothing(trace, path):
    with pytest.raises(KeyboardInterrupt), TraceWriter(path, trace.spec, {}):
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="nothing was appended"), TraceWriter(path, trace.spec, {}):
        pass
    assert list(path.parent.iterdir()) == []


def test_a_writer_refuses_chunks_that_do_not_belong_together(trace, path):
    with pytest.raises(InputError, match="plain data"):
        TraceWriter(path, trace.spec, {"when": object()})
    with TraceWriter(path, trace.spec, {}) as writer:
        writer.append(trace)
        with pytest.raises(InputError, match="with and without routes or weights"):
            writer.append(dataclasses.replace(trace, weights=None))
        with pytest.raises(InputError, match="cannot append a trace of 'small'"):
            writer.append(trace.of_layers([0]))
    assert Trace.read(path).tokens == 40


def test_a_folder_that_is_not_there_is_named(trace, tmp_path):
    with pytest.raises(InputError, match="cannot write there: No such file"):
        trace.write(tmp_path / "nowhere" / "trace.parquet")


def rewritten(trace, path, change):
    """Write the trace, and then change its table."""
    trace.write(path)
    pq.write_table(change(table_of(path)), path)


def header(**change):
    def replace(table):
        data = json.loads(table.schema.metadata[parquet.KEY]) | change
        return table.replace_schema_metadata({parquet.KEY: json.dumps(data)})

    return replace


def column(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace_schema_metadata({}), "expected the header of a trace, found none; .*moesim import"),
        (lambda t: t.replace_schema_metadata({parquet.KEY: b"{"}), "expected JSON"),
        (lambda t: t.replace_schema_metadata({parquet.KEY: 100_000 * b"["}), "expected JSON"),
        (lambda t: t.replace_schema_metadata({parquet.KEY: b"[]"}), "schema: expected version 1, found None"),
        (header(schema=2), "schema: expected version 1, found 2; use the version of moesim"),
        (header(kind="pictures"), "kind: Input should be 'tokens' or 'counts'"),
        (header(surprise=1), "surprise: Extra inputs"),
        (header(domains="law"), "domains: Input should be a valid list"),
        (header(spec={"name": "x"}), r"spec\.layer_ids: Field required"),
        (header(spec=small_spec().to_dict() | {"vocab": "many"}), r"spec\.vocab: Input should be a valid integer"),
        (header(spec=small_spec().to_dict() | {"colour": 1}), "spec: model spec: unknown keys"),
        (header(spec=small_spec(experts=4).to_dict()), r"expert id \d is not in -1\.\.3"),
        (header(spec=small_spec(top_k=3).to_dict()), "experts_00: expected lists of 3 int16 values, found"),
        (header(domains=["law"]), "domain: 'code' is not one of law"),
        (header(kind="counts"), "layer: expected this column, found none"),
        (column("step", pa.array(["a"] * 40)), "step: expected integers, found string"),
        (column("step", pa.array([None] * 40, pa.int32())), "step: expected no empty values, found 40"),
        (column("request", pa.array([2**40] * 40)), "Trace.request: values do not fit int32"),
        (column("phase", pa.array(["sleep"] * 40)), "phase: 'sleep' is not one of prefill, decode, train"),
        (column("experts_01", pa.array([[1, 2]] * 40)), "experts_01: expected lists of 2 int16 values, found list<"),
        (column("experts_01", pa.array([[1, 1]] * 40, pa.list_(pa.int16(), 2))), "layer 1: expert 1 occurs twice"),
        (column("experts_01", pa.array([[1, None]] * 40, pa.list_(pa.int16(), 2))), "experts_01: expected no empty"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused_in_one_line(trace, path, change, message):
    rewritten(trace, path, change)
    with pytest.raises(FormatError, match=message) as caught:
        Trace.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_counts_out_of_order_are_refused(trace, path):
    rewritten(Trace(trace.spec, given_counts=trace.counts), path, lambda t: t.take(list(range(10))[::-1]))
    with pytest.raises(FormatError, match=r"layer: expected the layers 0\.\.1 of each step in order"):
        Trace.read(path)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused_in_one_line(trace, path, keep):
    trace.write(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(FormatError, match="not a complete Parquet file") as caught:
        Trace.read(path)
    assert "\n" not in str(caught.value)
    if keep:
        with pytest.raises(FormatError, match="not a complete Parquet file"):
            read_any(path)


def test_a_file_that_is_not_there_is_named(path):
    for read in (Trace.read, read_any):
        with pytest.raises(FormatError, match="no such file"):
            read(path)


@law
@given(data=st.data())
def test_a_damaged_file_gives_the_trace_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "trace.parquet"
    trace = random_trace(0, [5, 6])
    trace.write(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    problem = ""
    try:
        Trace.read(path)
    except FormatError as error:
        problem = str(error)
    assert "\n" not in problem


def test_the_documented_example_runs(root, tmp_path, monkeypatch):
    section = (root / "docs" / "formats.md").read_text().split("\n## Traces\n")[1].split("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example, names)
    assert names["tokens"] == 1500
    assert names["two_layers"].spec.layer_ids == (0, 7)
