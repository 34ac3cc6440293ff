"""Laws of every importer: what another tool wrote from a trace is that trace again, and damage is one line.

The files are written in `foreign.py` from the formats' descriptions; the tools themselves are not run here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from foreign import COUNTED, SAMPLES, SPEC, sample_trace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.base.errors import FormatError, MissingExtra, MoesimError, UnknownName
from moesim.testing import check_format
from moesim.trace import TRACE_FORMATS, Trace, import_any, make_batches, read_any

NEEDS_TORCH = ("sglang-stat", "sglang-pass", "sglang-token")
MORE = {"flame": {"request_tokens": 5}}
"""Options without which a small sample is one request."""
IN_PARTS = ("sglang-token", "routed-experts", "megatron", "expert-selection")


@pytest.fixture(params=SAMPLES)
def name(request) -> str:
    if request.param in NEEDS_TORCH:
        pytest.importorskip("torch", reason="torch reads the files of SGLang's recorder")
    return request.param


def test_every_format_is_sampled_here():
    assert set(TRACE_FORMATS.names()) - set(SAMPLES) == {"parquet", "npz", "parts"}


def test_the_routing_survives(name, tmp_path):
    trace = sample_trace()
    path = SAMPLES[name](tmp_path, trace)
    # a folder of requests, where there is one a file
    read = read_any(tmp_path if name == "expert-selection" else path, model=SPEC)
    assert read.spec == SPEC
    assert read.origin["format"] == name
    assert read.origin["synthetic"] is False
    assert read.origin["model"] == "mixed"
    assert np.array_equal(read.loads, trace.loads)
    if name in COUNTED:
        assert read.routes is None
    elif name == "expert-selection":
        assert read.domains == ("law", "physics")
        assert np.array_equal(read.of_domain("law").routes, trace.routes[trace.request == 1])
    else:
        assert np.array_equal(read.routes, trace.routes)


def test_what_was_imported_can_be_batched_and_split(name, tmp_path):
    path = SAMPLES[name](tmp_path, sample_trace())
    trace = read_any(tmp_path if name == "expert-selection" else path, model=SPEC, **MORE.get(name, {}))
    if trace.routes is not None:
        assert len(make_batches(trace, 2, tokens_per_rank=2, seed=1)) > 0
    if name != "eplb-loads":  # one matrix
        fit, rest = trace.split(0.5)
        assert fit.rows + rest.rows == trace.rows


def test_the_model_must_be_given(name, tmp_path):
    path = SAMPLES[name](tmp_path, sample_trace())
    with pytest.raises(FormatError, match="the file does not say which model was recorded: give model="):
        read_any(path)
    with pytest.raises(UnknownName, match="did you mean 'mixtral-8x7b'"):
        read_any(path, model="mixtral-8x7")
    with pytest.raises(FormatError):
        read_any(path, model="gpt-oss-20b")


def test_the_model_may_be_a_config(name, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "trace").mkdir()
    config = {
        "hidden_size": 16, "moe_intermediate_size": 32, "intermediate_size": 32, "num_hidden_layers": 5,
        "num_experts": 8, "num_experts_per_tok": 2, "mlp_only_layers": [0, 3],
    }  # fmt: skip
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    path = SAMPLES[name](tmp_path / "trace", sample_trace())
    for model in (tmp_path / "mine", str(tmp_path / "mine" / "config.json")):
        assert read_any(path, model=model).spec.layer_ids == (1, 2, 4)


def test_it_faces_the_judge(name, tmp_path):
    path = SAMPLES[name](tmp_path, sample_trace())
    if not path.is_dir():
        check_format(TRACE_FORMATS.get(name), sample=path, model=SPEC)


def test_no_other_format_claims_it(name, tmp_path):
    path = SAMPLES[name](tmp_path, sample_trace())
    assert [other for other in TRACE_FORMATS.names() if TRACE_FORMATS.get(other).sniff(path)] == [name]


def test_options_are_checked(name, tmp_path):
    path = SAMPLES[name](tmp_path, sample_trace())
    with pytest.raises(UnknownName, match=f"unknown option of trace format {name} 'modle': did you mean 'model'"):
        read_any(path, modle=SPEC)
    with pytest.raises(MoesimError, match="option model: expected the name of a preset"):
        read_any(path, model=7)
    with pytest.raises(MoesimError, match="option origin: expected facts by name"):
        read_any(path, model=SPEC, origin="me")


def test_the_origin_takes_more_facts(name, tmp_path):
    path = SAMPLES[name](tmp_path, sample_trace())
    assert read_any(path, model=SPEC, origin={"captured_by": "us"}).origin["captured_by"] == "us"


def test_importing_writes_what_reading_gives(name, tmp_path):
    path = SAMPLES[name](tmp_path, sample_trace())
    rows = import_any(path, tmp_path / "trace.parquet", model=SPEC)
    trace, whole = Trace.read(tmp_path / "trace.parquet"), read_any(path, model=SPEC)
    assert rows == trace.rows
    assert trace == whole
    assert hasattr(TRACE_FORMATS.get(name), "parts") == (name in IN_PARTS)


def test_a_refused_import_writes_nothing(name, tmp_path):
    path = SAMPLES[name](tmp_path, sample_trace())
    with pytest.raises(MoesimError):
        import_any(path, tmp_path / "trace.parquet", model="gpt-oss-20b")
    assert not (tmp_path / "trace.parquet").exists()


@pytest.mark.parametrize("name", ["routed-experts", "megatron", "expert-selection"])
def test_a_part_comes_before_the_rest_is_read(name, tmp_path):
    path = SAMPLES[name](tmp_path, sample_trace())
    last = path
    if name == "expert-selection":
        path, last = tmp_path, sorted(tmp_path.rglob("*.json"))[-1]
    last.write_bytes(last.read_bytes()[:-20] + b"damaged")
    parts = TRACE_FORMATS.get(name).parts(path, model=SPEC)
    assert next(parts).tokens > 0
    with pytest.raises(FormatError, match="expected JSON"):
        list(parts)
    # and nothing is left of an import that fails on its way
    with pytest.raises(FormatError):
        import_any(path, tmp_path / "trace.parquet", model=SPEC)
    assert not list(tmp_path.glob("*.parquet"))


def files_below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_gives_a_trace_or_one_line(name, tmp_path, data):
    place = tmp_path / "fuzz"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    path = SAMPLES[name](place, sample_trace())
    file = data.draw(st.sampled_from(files_below(place)))
    raw = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "bytes", "digit"]))
    if kind == "cut":
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    elif kind == "bytes":
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    elif digits := [i for i, byte in enumerate(raw) if chr(byte) in '0123456789[]{}",:']:
        raw[data.draw(st.sampled_from(digits))] = ord(data.draw(st.sampled_from('-9[]{}",:.en')))
    file.write_bytes(raw)
    problem = ""
    try:
        TRACE_FORMATS.get(name).sniff(path)
        read_any(path, format=name, model=SPEC)
    except MoesimError as error:
        problem = str(error)
    assert "\n" not in problem


ODD = (None, True, -1, 2**40, 2**70, 1.5, float("nan"), "x", "", [], {}, [[]], [[1], [2, 3]], {"a": 1}, [None])


def with_an_odd_value(value, data):
    """Return a copy of plain data in which one value, anywhere in it, is another."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 4)):
        key = data.draw(st.sampled_from(list(value)))
        if not data.draw(st.integers(0, 8)):
            return {other: item for other, item in value.items() if other != key}
        return value | {key: with_an_odd_value(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 4)):
        i = data.draw(st.integers(0, len(value) - 1))
        return [*value[:i], with_an_odd_value(value[i], data), *value[i + 1 :]]
    return data.draw(st.sampled_from(ODD))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_odd_value_gives_a_trace_or_one_line(name, tmp_path, data):
    place = tmp_path / "odd"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    path = SAMPLES[name](place, sample_trace())
    file = data.draw(st.sampled_from(files_below(place)))
    if file.suffix in (".json", ".jsonl"):
        lines = file.read_text().splitlines()
        i = data.draw(st.integers(0, len(lines) - 1))
        lines[i] = json.dumps(with_an_odd_value(json.loads(lines[i]), data))
        file.write_text("\n".join(lines))
    elif file.suffix == ".pt":
        import torch

        content = with_an_odd_value(torch.load(file, weights_only=True), data)
        torch.save(content, file)
    problem = ""
    try:
        TRACE_FORMATS.get(name).sniff(path)
        read_any(path, format=name, model=SPEC)
    except MoesimError as error:
        problem = str(error)
    assert "\n" not in problem


@pytest.mark.parametrize("name", NEEDS_TORCH)
def test_without_torch_it_says_what_to_install(name, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch writes the sample")
    path = SAMPLES[name](tmp_path, sample_trace())
    # None in sys.modules makes an import fail as if the package were absent
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert TRACE_FORMATS.get(name).sniff(path)
    with pytest.raises(MissingExtra, match=r"pip install 'moesim\[gpu\]'"):
        read_any(path, model=SPEC)


@pytest.mark.parametrize("name", NEEDS_TORCH)
def test_a_malicious_pickle_is_refused(name, tmp_path):
    torch = pytest.importorskip("torch", reason="torch writes the sample")
    mark = tmp_path / "was-run"

    class Malicious:
        def __reduce__(self):
            return (Path.touch, (mark,))

    path = tmp_path / "evil.pt"
    content = {"logical_count": Malicious(), "records": [{"topk_ids_of_layer": 0, "global_physical_count": 0}]}
    torch.save(content, path)
    with pytest.raises(FormatError, match="code in a file is never run") as caught:
        read_any(path, format=name, model=SPEC)
    assert "\n" not in str(caught.value)
    TRACE_FORMATS.get(name).sniff(path)
    assert not mark.exists()
