"""Whatever a server or a file says, a capture ends in a trace or in one line, and keeps what it has."""

from __future__ import annotations

import base64
import json
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capture.engine_server import npy
from moesim.base.errors import MoesimError
from moesim.capture.dialects import VLLM, Asked, SGLang
from moesim.capture.http import ServerError
from moesim.capture.prompts import Prompt, read_prompts
from moesim.capture.server import capture_server
from moesim.spec import ModelSpec
from moesim.trace import Trace
from moesim.trace.formats.routed_experts import has_routes, reply_traces, tokens_told

SPEC = ModelSpec("little", (1, 2, 4), 5, experts=12, top_k=2, hidden=64, intermediate=32)
QUIET = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

numbers = st.none() | st.booleans() | st.integers(-3, 70) | st.integers(2**31, 2**70) | st.floats()
payloads = (
    st.text(max_size=6)
    | st.binary(max_size=90).map(lambda raw: base64.b64encode(raw).decode())
    | st.integers(0, 12).map(lambda T: base64.b64encode(np.zeros((T, 5, 2), "<i4").tobytes()).decode())
    | st.sampled_from(
        [npy(np.zeros((3, 5, 2), kind)) for kind in (np.uint8, np.int64, np.float32, bool, "S3")]
        + [npy(np.zeros(shape, np.uint8)) for shape in [(0,), (0, 5, 2), (2, 3, 2), (2, 5), (1, 9, 2)]]
        + [npy(np.full((2, 5, 2), 200, np.uint8))]
    )
)
anything = st.recursive(numbers | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3), max_leaves=4)
counts = st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens"]), numbers)
replies = st.fixed_dictionaries(
    {},
    optional={
        "routed_experts": payloads | anything,
        "meta_info": counts.flatmap(
            lambda c: st.fixed_dictionaries({"routed_experts": payloads | anything}).map(c.__or__)
        )
        | anything,
        "sglext": st.fixed_dictionaries({"routed_experts": payloads}) | anything,
        "choices": st.lists(st.fixed_dictionaries({"routed_experts": payloads | anything}) | anything, max_size=3)
        | anything,
        "usage": counts | anything,
        "domain": anything,
    },
)


@QUIET
@given(reply=replies)
def test_any_reply_is_read_or_refused_in_one_line(reply):
    assert has_routes(reply) in (True, False)
    assert tokens_told(reply) is None or tokens_told(reply) >= 0
    try:
        for trace in reply_traces("reply", "prompt 0", reply, SPEC, whole=True):
            assert trace.spec == SPEC
    except MoesimError as error:
        check_line(error)


def check_line(error: MoesimError) -> None:
    if "\n" in str(error):
        pytest.fail(f"more than a line: {error}")


class Fake:
    """A server that gives these replies in turn."""

    url, timeout_s = "http://fake", 1.0

    def __init__(self, said) -> None:
        self.said = list(said)

    def get(self, path):
        return {"data": [{"id": "m", "root": "m"}], "model_path": "m"}

    def post(self, path, content):
        reply = self.said.pop(0)
        if reply is None:
            raise ServerError("broken", again=False, status=500)
        return reply


@QUIET
@given(said=st.lists(st.none() | replies, min_size=4, max_size=4), engine=st.sampled_from([VLLM(), SGLang()]))
def test_any_run_ends_in_a_trace_or_one_line_and_keeps_every_reply(said, engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    prompts = [Prompt(i, text="x") for i in range(4)]
    good = {
        "meta_info": {"routed_experts": base64.b64encode(np.ones((2, 5, 2), "<i4").cumsum(2).astype("<i4")).decode()}
    }
    said = [good, *said[1:]]
    outcome = None
    try:
        outcome = capture_server(
            engine, Fake(said), prompts, folder / "t.parquet", asked=Asked(), spec=SPEC, concurrency=1, retries=0
        )
    except MoesimError as error:
        check_line(error)
    trace = Trace.read(folder / "t.parquet")
    assert 0 in trace.request
    held = [reply for reply in said if reply is not None and has_routes(reply)]
    journal = folder / "t.parquet.responses.jsonl"
    if outcome is not None and not outcome.failed:
        assert not journal.exists()
        assert len(set(trace.request.tolist())) >= 1
    else:
        kept = [json.loads(line) for line in journal.read_text().splitlines()]
        assert len(kept) == len(held) or outcome is None


@QUIET
@given(content=st.binary(max_size=60), kind=st.sampled_from(["txt", "json", "jsonl", "csv", "tsv", "parquet"]))
def test_any_file_of_prompts_is_read_or_refused_in_one_line(content, kind, tmp_path):
    path = tmp_path / f"prompts.{kind}"
    path.write_bytes(content)
    try:
        assert read_prompts(path)
    except MoesimError as error:
        check_line(error)


@QUIET
@given(row=st.dictionaries(st.sampled_from(["prompt", "messages", "input_ids", "domain", "turns"]), anything))
def test_any_row_of_prompts_is_read_or_refused_in_one_line(row, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(row))
    try:
        [prompt] = read_prompts(path)
        assert sum(value is not None for value in (prompt.text, prompt.tokens, prompt.messages)) == 1
    except MoesimError as error:
        check_line(error)


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_malicious_recording_is_refused(tmp_path, capsys):
    """What lands in the recorder's folder is opened as data: a pickle that would run code does not."""
    pytest.importorskip("torch", reason="SGLang's recorder writes torch files")
    from moesim.capture.recording import record_sglang

    class Recorder:
        url, timeout_s = "http://fake", 1.0

        def call(self, path):
            if path.startswith("/dump"):
                (tmp_path / "expert_distribution_recorder_1.5.pt").write_bytes(pickle.dumps(Bomb()))

    with pytest.raises(MoesimError) as error:
        record_sglang(Recorder(), tmp_path, tmp_path / "t.parquet", lambda: None, options={"model": SPEC}, still_s=0.05)
    assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out
    assert not (tmp_path / "t.parquet").exists()
