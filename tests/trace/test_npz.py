"""The generic importer: npz files with named arrays."""

from __future__ import annotations

import dataclasses
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_traces import law, random_trace, small_spec

from moesim.base.errors import FormatError, InputError, MoesimError, UnknownName
from moesim.trace import TRACE_FORMATS, Trace, read_any
from moesim.trace.formats import npz


@pytest.fixture
def path(tmp_path):
    return tmp_path / "routing.npz"


@pytest.fixture
def lone() -> Trace:
    return random_trace(0, [3, 4, 5])


def load(path, **arrays):
    options = {"model": small_spec()} | arrays.pop("options", {})
    np.savez(path, **arrays)
    return read_any(path, **options)


def test_routes_weights_and_sequences(path, lone):
    weights = np.random.default_rng(0).random(lone.routes.shape)
    trace = load(
        path,
        experts=lone.routes.astype(np.uint8),
        weights=weights,
        offsets=[0, 3, 7, 12],
        category=["law", "code", "law"],
        options={"phase": "decode", "origin": {"captured_by": "us"}},
    )
    assert np.array_equal(trace.routes, lone.routes)
    assert np.array_equal(trace.weights, weights.astype(np.float16))
    assert np.array_equal(trace.request, lone.request)
    assert np.array_equal(trace.position, lone.position)
    assert trace.domains == ("code", "law")
    assert trace.domain.tolist() == [1] * 3 + [0] * 4 + [1] * 5
    assert set(trace.phase) == {1}
    assert dict(trace.origin) == {
        "captured_by": "us",
        "imported_from": "routing.npz",
        "format": "npz",
        "synthetic": False,
        "model": "small",
    }


def test_columns_by_token_under_their_other_names(path, lone):
    row = np.arange(12)
    trace = load(
        path,
        topk_ids=lone.routes,
        request_id=row // 3,
        position=row % 3 + 7,
        step=row // 6,
        rank=row % 2,
        phase=np.where(row < 6, "prefill", "decode"),
        domain=row % 3,
    )
    assert trace.position.tolist() == [7, 8, 9] * 4
    assert trace.has_steps
    assert trace.source.tolist() == [0, 1] * 6
    assert trace.phase.tolist() == [0] * 6 + [1] * 6
    assert trace.domains == ("0", "1", "2")


def test_an_array_of_domains_can_be_chosen(path, lone):
    arrays = {"experts": lone.routes, "category": ["a"] * 12, "dataset": ["x", "y"] * 6}
    assert load(path, **arrays).domains == ("a",)
    assert load(path, **arrays, options={"domain": "dataset"}).domains == ("x", "y")


def test_one_set_of_arrays_a_domain(path, lone):
    trace = load(
        path,
        law_experts=lone.routes[:7],
        law_offsets=[0, 3, 7],
        code_experts=lone.routes[7:],
        code_offsets=[0, 5],
    )
    assert trace.domains == ("code", "law")
    assert np.array_equal(trace.of_domain("law").routes, lone.routes[:7])
    # requests of different domains are different requests
    assert trace.request.tolist() == [0] * 5 + [1] * 3 + [2] * 4
    assert trace.position.tolist() == [*range(5), *range(3), *range(4)]


def test_what_the_file_does_not_say_is_in_the_origin(path, lone):
    trace = load(path, experts=lone.routes)
    assert set(trace.request) == {0}
    assert trace.origin["phase"] == "assumed prefill, the file does not say"
    assert trace.origin["captured_by"] == "unknown"


def test_experts_without_a_model_need_dimensions_too(path, lone):
    trace = load(path, experts=lone.routes, options={"model": None, "experts": 8, "dims": "deepseek-v3"})
    assert (trace.spec.layers, trace.spec.experts, trace.spec.top_k, trace.spec.hidden) == (2, 8, 2, 7168)
    assert trace.spec.name == "routing @ deepseek-v3"
    for options in ({}, {"experts": 8}, {"dims": "deepseek-v3"}):
        with pytest.raises(InputError, match=r"largest id that occurs \(7\) does not tell .* give model="):
            load(path, experts=lone.routes, options={"model": None} | options)


def test_counts(path, trace):
    counted = load(path, counts=trace.counts)
    assert np.array_equal(counted.counts, trace.counts)
    by_domain = load(path, a_counts=trace.loads, b_counts=trace.counts)
    assert by_domain.domains == ("a", "b")
    assert by_domain.domain.tolist() == [0] + [1] * 5
    named = load(path, m__counts__x=trace.loads, other=trace.loads, options={"counts": "m__counts__*"})
    assert named.domains == ("x",)
    with pytest.raises(FormatError, match="counts: expected 8 experts as in small, found 7"):
        load(path, counts=trace.counts[..., :7])
    with pytest.raises(InputError, match="give model="):
        load(path, counts=trace.counts, options={"model": None, "experts": 8, "dims": "deepseek-v3"})


def test_rows_of_dense_layers_are_left_out(path):
    spec = dataclasses.replace(small_spec(), layer_ids=(1, 3), num_hidden_layers=4, dense_intermediate=32)
    lone = random_trace(0, [3, 4, 5], spec=spec)
    routes, weights = np.zeros((12, 4, 2), np.uint8), np.zeros((12, 4, 2))  # as vLLM has them, zeros in dense layers
    routes[:, [1, 3]], weights[:, [1, 3]] = lone.routes, np.arange(48).reshape(12, 2, 2)
    trace = load(path, experts=routes, weights=weights, options={"model": spec})
    assert np.array_equal(trace.routes, lone.routes)
    assert np.array_equal(trace.weights.ravel(), np.arange(48))
    assert trace.origin["layers"] == "rows of 2 dense layers were left out"
    counted = load(path, counts=np.arange(32).reshape(4, 8), options={"model": spec})
    assert np.array_equal(counted.counts[0], np.arange(32).reshape(4, 8)[[1, 3]])
    # a model without dense layers, or layers that were named: nothing is left out
    assert "layers" not in load(path, experts=lone.routes).origin
    assert load(path, experts=lone.routes[:, :1], options={"model": spec, "layers": [1]}).spec.layer_ids == (3,)


def test_some_layers_of_a_model(path, lone):
    spec = small_spec(layers=5)
    trace = load(path, experts=lone.routes, options={"model": spec, "layers": [1, 4]})
    assert trace.spec.layer_ids == (1, 4)
    with pytest.raises(FormatError, match="expected the 5 MoE layers of small, found 2; say with layers="):
        load(path, experts=lone.routes, options={"model": spec})


GOOD = random_trace(0, [3, 4, 5]).routes.astype(np.int64)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"expected an array experts \[T, L, K\] or counts .*found no arrays"),
        ({"picture": np.zeros(3)}, "found picture; rename the arrays"),
        ({f"a{i}": [0] for i in range(20)}, "and 12 more"),
        ({"experts": GOOD.astype(float)}, r"experts: expected integer expert ids \[tokens, layers, picks\], found"),
        ({"experts": GOOD[0]}, r"experts: expected integer expert ids \[tokens, layers, picks\], found"),
        (
            {"experts": GOOD + 100_000},
            r"expected expert ids from -1 \(none\) to 32767, found 10\d+ \(token \d+, layer \d\)",
        ),
        ({"experts": GOOD - 2}, r"expected expert ids from -1 \(none\) to 32767, found -2 \(token \d+, layer \d\)"),
        ({"experts": GOOD + 1}, r"expert id 8 is not in -1\.\.7; give the spec of the model"),
        ({"experts": GOOD[:, :, :1]}, "expected 2 picks a token as in small, found 1; give another model="),
        ({"experts": GOOD, "weights": GOOD}, r"weights: expected floats \[12, 2, 2\], found int64"),
        ({"experts": GOOD, "weights": np.full(GOOD.shape, 1e9)}, "not a finite float16"),
        ({"experts": GOOD, "offsets": [0, 11]}, "offsets: expected ascending numbers from 0 to the 12 tokens"),
        ({"experts": GOOD, "offsets": [0.0, 12.0]}, "offsets: expected the numbers of the rows"),
        ({"experts": GOOD, "position": [0]}, r"position: expected 12 integers, found int64 \[1\]"),
        ({"experts": GOOD, "phase": ["sleep"] * 12}, "phase: 'sleep' is not one of prefill"),
        ({"experts": GOOD, "phase": [9] * 12}, r"phase: expected phase codes 0\.\.2"),
        ({"experts": GOOD, "phase": [0]}, "phase: expected 12 phases"),
        ({"experts": GOOD, "domain": ["a"] * 5}, "domain: expected a name or code for each of 12 tokens"),
        ({"experts": GOOD, "id_space": "physical"}, "id_space: expected logical expert ids, found physical ones"),
        ({"a_experts": GOOD, "b_experts": GOOD[:, :1]}, r"b_experts: expected \[T, 2, 2\] as in a_experts"),
        (
            {"a_experts": GOOD, "b_experts": GOOD, "b_weights": GOOD * 0.1},
            "weights: expected this array for every domain",
        ),
        ({"a_counts": np.ones((2, 8), int), "b_counts": np.ones((3, 8), int)}, "b_counts: expected integer counts"),
        ({"counts": np.ones((2, 8))}, "counts: expected integer counts"),
        ({"counts": np.zeros((2, 8), int)}, "counts: expected counts, found zeros only; record while requests run"),
        ({"experts": np.full((3, 2, 2), -1)}, "experts: expected picks, found -1 .none. only"),
        ({"counts": -np.ones((2, 8), int)}, "step 0, layer 0, expert 0: negative count"),
        (
            {"counts": np.full((2, 8), 2**61)},
            r"1.84467e\+19 picks in a layer cannot be counted exactly; scale them down",
        ),
        ({"experts": np.array([{}], object)}, "experts: an object array is a pickle and is never loaded"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_line(path, arrays, message):
    np.savez(path, **arrays)
    with pytest.raises(FormatError, match=message) as caught:
        npz.read(path, model=small_spec())
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gpt-oss-20"}, "did you mean 'gpt-oss-20b'"),
        ({"modle": "x"}, "unknown option of trace format npz 'modle': did you mean 'model'"),
        ({"model": 7}, "option model: expected the name of a preset, got 7"),
        ({"experts": "many"}, "option experts: expected a number, got 'many'"),
        ({"layers": "0,1"}, r"option layers: expected a list of layer numbers such as \[0, 7, 15\], got '0,1'"),
        ({"layers": [0, "x"]}, "option layers: expected a list"),
        ({"domain": 5}, "option domain: expected text, got 5"),
        ({"experts": 9}, "small has 8 experts, not 9"),
        ({"phase": "sleep"}, "option phase: expected one of prefill"),
        ({"domain": "colour"}, "no array 'colour' in the file; it holds experts"),
    ],
)
def test_options_that_cannot_be_are_refused(path, lone, options, message):
    with pytest.raises(InputError, match=message):
        load(path, experts=lone.routes, options=options)


def test_a_header_that_promises_more_than_the_file_holds_is_refused(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i2", "fortran_order": False, "shape": (10**12, 2, 2)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("experts.npy", header.getvalue())
    with pytest.raises(FormatError, match="experts: promises 8000000000000 bytes"):
        npz.read(path, model=small_spec())


def test_arrays_of_absurd_size_are_refused(path, lone, monkeypatch):
    monkeypatch.setattr(npz, "MOST_BYTES", 10)
    with pytest.raises(FormatError, match="promises 96 bytes"):
        load(path, experts=lone.routes)


def test_a_file_nobody_knows_and_a_format_nobody_knows(path, lone):
    path.write_text("hello")
    with pytest.raises(FormatError, match=r"no trace format knows this file \(tried parquet, .*npz, .*parts\)"):
        read_any(path)
    with pytest.raises(FormatError, match="not a complete npz file"):
        read_any(path, format="npz", model=small_spec())
    with pytest.raises(UnknownName, match="unknown trace format 'npy': did you mean 'npz'"):
        read_any(path, format="npy")


@law
@given(data=st.data())
def test_a_damaged_file_gives_a_trace_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "routing.npz"
    np.savez_compressed(path, experts=GOOD, offsets=[0, 3, 12], category=["a", "b"])
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    problem = ""
    try:
        npz.read(path, model=small_spec())
    except MoesimError as error:
        problem = str(error)
    assert "\n" not in problem


@pytest.mark.parametrize("name", TRACE_FORMATS.names())
def test_every_format_offers_sniff_and_read_and_does_not_claim_foreign_files(name, tmp_path):
    plugin = TRACE_FORMATS.get(name)
    foreign = tmp_path / "foreign"
    for content in (b"", b"hello", b"{}", bytes(1000)):
        foreign.write_bytes(content)
        assert not plugin.sniff(foreign)
    assert not plugin.sniff(tmp_path)
    assert not plugin.sniff(tmp_path / "nowhere")
    assert callable(plugin.read)


def test_published_traces_load(shared_data):
    folder = shared_data / "routing"
    oss = read_any(folder / "gpt_oss_20b_decode.npz", model="gpt-oss-20b", phase="decode", domain="dataset")
    assert (oss.tokens, oss.layers, oss.steps) == (73_415, 24, 213)
    assert "mmlu_test" in oss.domains
    lite = read_any(folder / "deepseek_v2_lite_intent_law.npz", model="deepseek-v2-lite")
    assert (lite.tokens, lite.layers, lite.domains) == (8222 + 8327, 26, ("intent", "law"))
    counts = read_any(
        folder / "olmoe_mixtral_counts.npz",
        model="olmoe-1b-7b",
        layers=[0, 7, 15],
        counts="olmoe__expert_counts__*",
    )
    assert counts.domains == ("arxiv", "book", "c4", "github", "tulu", "wikipedia")
    assert counts.routes is None


@pytest.mark.parametrize("name", ["half.npz", "half.pt"])
def test_an_archive_that_was_cut_is_no_unknown_format(tmp_path, name):
    np.savez(tmp_path / "whole.npz", experts=np.zeros((50, 2, 2), int))
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=rf"{name}: not a complete archive, as .pt and .npz files are; copy it again"):
        read_any(tmp_path / name, model=small_spec())
