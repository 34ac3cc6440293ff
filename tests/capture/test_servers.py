"""`moesim capture vllm` and `sglang`, end to end against a server that speaks as they do, and what goes wrong there."""

from __future__ import annotations

import json
import os
import signal
import threading

import numpy as np
import pytest

from capture.engine_server import Engine, padded, routes_of, running
from moesim.base.errors import InputError
from moesim.capture.dialects import VLLM, Asked, SGLang
from moesim.capture.http import Server, ServerError
from moesim.capture.prompts import Prompt, read_prompts
from moesim.capture.server import capture_server
from moesim.cli import main
from moesim.spec import ModelSpec
from moesim.trace import Trace, read_any

SPEC = ModelSpec("little", (1, 2, 4), 5, experts=12, top_k=2, hidden=64, intermediate=32)
CONFIG = {
    "hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 32, "num_hidden_layers": 5, "num_experts": 12,
    "num_experts_per_tok": 2, "mlp_only_layers": [0, 3],
}  # fmt: skip
DIALECTS = {"vllm": VLLM(), "sglang": SGLang()}


@pytest.fixture(params=["vllm", "sglang"])
def kind(request) -> str:
    return request.param


def prompts(count=9):
    words = [
        "to",
        "see",
        "the",
        "world",
        "in",
        "a",
        "grain",
        "of",
        "sand",
        "and",
        "a",
        "heaven",
        "in",
        "wild",
        "flower",
    ]
    return [
        Prompt(i, text=" ".join([str(i), *words[: 1 + i % 7]]), domain=("verse", "prose")[i % 2]) for i in range(count)
    ]


def capture(engine, url, output, items=None, timeout_s=20.0, **more):
    given = {"asked": Asked(new_tokens=4), "spec": SPEC, "pause_s": 0.01, "concurrency": 4, "retries": 1} | more
    return capture_server(DIALECTS[engine.kind], Server(url, timeout_s), items or prompts(), output, **given)


def check(trace, engine, items, asked=4):
    """The trace holds what the model routed for each of these prompts, and nothing else."""
    assert sorted(set(trace.request.tolist())) == [item.number for item in items]
    for item in items:
        mine = trace.select(trace.request == item.number)
        content = {"text": item.text, "max_tokens": asked}
        prompt, answer = engine.lengths(content)
        assert np.array_equal(mine.routes, routes_of(SPEC, item.text, prompt + answer))
        assert mine.position.tolist() == list(range(prompt + answer - 1))
        assert mine.phase.tolist() == [0] * prompt + [1] * (answer - 1)
        assert {mine.domains[code] for code in mine.domain} == {item.domain}


def test_every_reply_is_in_the_trace(kind, tmp_path):
    engine = Engine(kind, SPEC, pause_s=0.02)
    with running(engine) as url:
        outcome = capture(engine, url, tmp_path / "t.parquet")
    trace = Trace.read(tmp_path / "t.parquet")
    check(trace, engine, prompts())
    assert (outcome.requests, outcome.failed, outcome.tokens) == (9, {}, trace.tokens)
    assert trace.spec == SPEC
    assert trace.origin["engine"] == DIALECTS[kind].name
    assert not trace.has_steps
    assert 1 < engine.busiest <= 4
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_many_experts_and_one_pick_a_token(kind, tmp_path):
    """More ids than a byte holds; and with top-1 a row of zeros is expert 0, not nothing."""
    for spec in (
        ModelSpec("wide", (0, 1), 2, experts=300, top_k=3, hidden=8, intermediate=8),
        ModelSpec("one", (1,), 2, experts=4, top_k=1, hidden=8, intermediate=8),
    ):
        engine = Engine(kind, spec)
        with running(engine) as url:
            capture(engine, url, tmp_path / "t.parquet", spec=spec)
        trace = Trace.read(tmp_path / "t.parquet")
        text = prompts()[3].text
        expected = routes_of(spec, text, sum(engine.lengths({"text": text, "max_tokens": 4})))
        assert np.array_equal(trace.routes[trace.request == 3], expected)


def test_chats_and_token_ids(kind, tmp_path):
    items = [
        Prompt(0, messages=({"role": "user", "content": "a b c"},)),
        Prompt(1, tokens=(5, 6, 7, 8)),
        Prompt(2, text="hello there"),
    ]
    engine = Engine(kind, SPEC)
    with running(engine) as url:
        outcome = capture(engine, url, tmp_path / "t.parquet", items)
        assert outcome.requests == 3
        capture(engine, url, tmp_path / "chat.parquet", [items[2]], asked=Asked(new_tokens=4, chat=True))
        with pytest.raises(InputError, match="cannot be asked as a chat"):
            capture(engine, url, tmp_path / "c.parquet", [items[1]], asked=Asked(new_tokens=4, chat=True))
    assert [path for path, _ in engine.seen].count("/v1/chat/completions") == 2
    asked = next(
        content for path, content in engine.seen if content.get("prompt", content.get("input_ids")) == [5, 6, 7, 8]
    )
    if kind == "sglang":
        assert all(content["return_routed_experts"] is True for _, content in engine.seen)
        assert asked["sampling_params"] == {"max_new_tokens": 4, "temperature": 1.0}
    else:
        assert asked == {"model": "served", "prompt": [5, 6, 7, 8], "max_tokens": 4, "temperature": 1.0}


@pytest.mark.parametrize("fault", ["slow", "drip", "partial", "reset", "garbage", "busy"])
def test_what_may_pass_is_asked_again(kind, fault, tmp_path):
    failed = set()

    def once(path, content):
        text = content.get("prompt") or content["text"]
        if int(text.split()[0]) % 4 == 1 and text not in failed:
            failed.add(text)
            return fault
        return None

    engine = Engine(kind, SPEC, fault=once)
    with running(engine) as url:
        outcome = capture(engine, url, tmp_path / "t.parquet", timeout_s=0.7)
    assert len(failed) == 2
    assert outcome.failed == {}
    check(Trace.read(tmp_path / "t.parquet"), engine, prompts())


@pytest.mark.parametrize("fault", ["too-long", "slow", "partial", "short", "wide", "id", "base64", "number"])
def test_what_fails_for_good_is_named_and_the_rest_kept(kind, fault, tmp_path):
    broken = [True]

    def always(path, content):
        return fault if broken[0] and int((content.get("prompt") or content["text"]).split()[0]) in (2, 6) else None

    engine, output = Engine(kind, SPEC, fault=always), tmp_path / "t.parquet"
    with running(engine) as url:
        outcome = capture(engine, url, output, timeout_s=0.7, retries=0)
        assert sorted(outcome.failed) == [2, 6]
        assert all("\n" not in problem for problem in outcome.failed.values())
        check(Trace.read(output), engine, [p for p in prompts() if p.number not in (2, 6)])
        assert Trace.read(output).origin["interrupted"] is True
        kept = outcome.kept
        assert kept == tmp_path / "t.parquet.responses.jsonl"
        # again, when the server is well: only what is missing is asked for
        broken[0] = False
        engine.seen.clear()
        outcome = capture(engine, url, output)
    assert len(engine.seen) == 2
    assert outcome.failed == {}
    check(Trace.read(output), engine, prompts())
    assert not kept.exists()


def test_a_first_reply_of_another_model_stops_before_more_is_asked(kind, tmp_path):
    engine = Engine(kind, SPEC)
    other = ModelSpec("other", (0, 1), 2, experts=12, top_k=4, hidden=8, intermediate=8)
    with running(engine) as url, pytest.raises(InputError, match=r"as in other|of other"):
        capture(engine, url, tmp_path / "t.parquet", spec=other)
    assert len(engine.seen) == 1
    # what was paid for is kept and can be read with the right model
    [kept] = tmp_path.iterdir()
    assert kept.name == "t.parquet.responses.jsonl"
    trace = read_any(kept, model=SPEC)
    assert np.array_equal(trace.routes, routes_of(SPEC, prompts()[0].text, trace.tokens + 1))
    assert trace.domains == ("verse",) or trace.domains == ("unlabelled",)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"capture": False}, "holds no routed experts; start the server with .*--enable-return-routed-experts"),
        ({"fault": lambda path, content: "unauthorized"}, "refused with 401: Unauthorized"),
        ({"fault": lambda path, content: "too-long"}, "refused with 400: maximum context length is 8 tokens"),
        ({"fault": lambda path, content: "busy"}, "refused with 503: overloaded"),
    ],
)
def test_a_server_that_gives_nothing_is_told_at_once(kind, setting, message, tmp_path):
    engine = Engine(kind, SPEC, **setting)
    with running(engine) as url, pytest.raises(InputError, match=message) as error:
        capture(engine, url, tmp_path / "t.parquet", prompts(40))
    assert "\n" not in str(error.value)
    assert len(engine.keys) <= 10
    assert list(tmp_path.iterdir()) == []


def test_no_server_and_a_wrong_address(kind, tmp_path):
    engine = Engine(kind, SPEC)
    with running(engine) as url:
        pass
    with pytest.raises(ServerError, match="is the server running"):
        capture(engine, url, tmp_path / "t.parquet")
    for address in ("ftp://host", "http://", "http://host:port"):
        with pytest.raises(InputError, match="expected an address"):
            Server(address)
    other = Engine("sglang" if kind == "vllm" else "vllm", SPEC)
    with running(other) as url, pytest.raises(ServerError, match="refused with 404"):
        capture(engine, url, tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_dies_leaves_what_it_said(kind, tmp_path):
    engine = Engine(kind, SPEC)

    def die(path, content):
        if len(engine.seen) >= 4:
            return "reset"
        return None

    engine.fault = die
    with running(engine) as url:
        outcome = capture(engine, url, tmp_path / "t.parquet", prompts(60), retries=0)
    assert outcome.requests >= 4
    assert len(outcome.failed) == 60 - outcome.requests
    # it gave up instead of asking for every prompt in vain
    assert len(engine.keys) < 30
    trace = Trace.read(tmp_path / "t.parquet")
    check(trace, engine, [p for p in prompts(60) if p.number in set(trace.request.tolist())])


def test_killed_it_goes_on_where_it_was(kind, tmp_path):
    """A kill leaves the journal, its last line perhaps cut off; what is in it is not asked for again."""
    engine, output = Engine(kind, SPEC), tmp_path / "t.parquet"
    with running(engine) as url:
        capture(engine, url, output, prompts(5), keep_replies=True)
        journal = tmp_path / "t.parquet.responses.jsonl"
        journal.write_bytes(journal.read_bytes()[:-25])
        output.unlink()
        engine.seen.clear()
        outcome = capture(engine, url, output)
        check(Trace.read(output), engine, prompts())
        assert (outcome.requests, len(engine.seen)) == (9, 5)
        # another capture does not go on with these replies
        capture(engine, url, output, prompts(3), keep_replies=True)
        with pytest.raises(InputError, match="holds the replies of another capture"):
            capture(engine, url, output, prompts(3), asked=Asked(new_tokens=2))
    # and with the server gone, what is there is written
    output.unlink()
    outcome = capture(engine, url, output, prompts(9))
    check(Trace.read(output), engine, prompts(3))
    assert len(outcome.failed) == 6


def test_the_model_is_read_from_the_folder_that_the_server_names(kind, tmp_path):
    (tmp_path / "little").mkdir()
    (tmp_path / "little" / "config.json").write_text(json.dumps(CONFIG))
    engine = Engine(kind, SPEC, model_path=str(tmp_path / "little"))
    with running(engine) as url:
        capture(engine, url, tmp_path / "t.parquet", spec=None)
        assert Trace.read(tmp_path / "t.parquet").spec.layer_ids == SPEC.layer_ids
        engine.model_path = "org/somewhere-else"
        with pytest.raises(InputError, match="give --model"):
            capture(engine, url, tmp_path / "u.parquet", spec=None)


# the command line


def arguments(kind, url, folder, *more):
    (folder / "config.json").write_text(json.dumps(CONFIG))
    lines = [json.dumps({"prompt": p.text, "domain": p.domain}) for p in prompts()]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return [
        "capture", kind, "--url", url, "--prompts", str(folder / "prompts.jsonl"), "-o", str(folder / "t.parquet"),
        "--model", str(folder / "config.json"), "--new-tokens", "4", *more,
    ]  # fmt: skip


def test_the_command(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    engine = Engine(kind, SPEC)
    with running(engine) as url, pytest.raises(SystemExit) as ended:
        main(
            arguments(kind, url, tmp_path, "--json", "--concurrency", "3", "--api-key-env", "MY_KEY", "--keep-replies")
        )
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    facts = json.loads(printed.out)
    trace = Trace.read(tmp_path / "t.parquet")
    check(trace, engine, prompts())
    assert (facts["tokens"], facts["requests"], facts["failed"]) == (trace.tokens, 9, 0)
    assert "9 of 9 prompts" in printed.err
    assert set(engine.keys) == {"Bearer secret"}
    journal = tmp_path / "t.parquet.responses.jsonl"
    assert "secret" not in journal.read_text()
    assert read_any(journal, model=SPEC, domain="domain").tokens == trace.tokens


def test_the_command_says_what_failed(kind, tmp_path, capsys):
    engine = Engine(kind, SPEC, fault=lambda path, c: "too-long" if str(c).count("'3 ") else None)
    with running(engine) as url, pytest.raises(SystemExit) as ended:
        main(arguments(kind, url, tmp_path))
    err = capsys.readouterr().err
    assert ended.value.code == 1
    assert "1 of 9 prompts failed, the first, 3:" in err
    assert "Traceback" not in err
    assert len(set(Trace.read(tmp_path / "t.parquet").request.tolist())) == 8


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_writes_what_it_has_and_goes_on_later(kind, sent, tmp_path, capsys):
    engine = Engine(kind, SPEC, pause_s=0.05)

    def stop(path, content):
        if len(engine.seen) == 4:
            os.kill(os.getpid(), sent)
            threading.Event().wait(0.2)
        return

    engine.fault = stop
    with running(engine) as url:
        with pytest.raises(SystemExit) as ended:
            main(arguments(kind, url, tmp_path, "--concurrency", "1"))
        assert ended.value.code == 130
        trace = Trace.read(tmp_path / "t.parquet")
        assert trace.origin["interrupted"] is True
        assert 0 < len(set(trace.request.tolist())) < 9
        engine.fault = lambda path, content: None
        with pytest.raises(SystemExit) as ended:
            main(arguments(kind, url, tmp_path, "--concurrency", "1"))
        assert not ended.value.code
    check(Trace.read(tmp_path / "t.parquet"), engine, prompts())
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--concurrency", "0"], "expected concurrency from 1"),
        (["--new-tokens", "0"], "a temperature from 0, got 0 and 1\n"),
        (["--temperature", "-1"], "a temperature from 0, got 4 and -1\n"),
        (["--api-key-env", "NO_SUCH"], "the environment has no such variable"),
        (["--timeout", "0"], "a timeout above 0"),
        (["--column", "nope"], "expected a prompt under 'nope'"),
        (["--limit", "0"], "expected at least 1 prompt"),
    ],
)
def test_bad_options_are_told(more, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments("vllm", "http://127.0.0.1:9", tmp_path, *more))
    assert ended.value.code == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("t.parquet*"))


# SGLang's recorder


def recorder_arguments(url, folder, *more):
    (folder / "dumps").mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return [
        "capture", "sglang", "--url", url, "--recorder", str(folder / "dumps"), "-o", str(folder / "t.parquet"),
        "--model", str(folder / "config.json"), *more,
    ]  # fmt: skip


def expected_loads():
    engine = Engine("sglang", SPEC)
    total = np.zeros((SPEC.layers, SPEC.experts), np.int64)
    for item in prompts():
        routes = routes_of(SPEC, item.text, sum(engine.lengths({"text": item.text, "max_tokens": 4})))
        for layer in range(SPEC.layers):
            total[layer] += np.bincount(routes[:, layer].ravel(), minlength=SPEC.experts)
    return total


@pytest.mark.parametrize("mode", ["stat", "per_pass"])
def test_the_recorder_is_started_stopped_and_dumped(mode, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="SGLang's recorder writes torch files")
    engine = Engine("sglang", SPEC, folder=tmp_path / "dumps", mode=mode)
    with running(engine) as url:
        command = recorder_arguments(url, tmp_path, "--prompts", str(tmp_path / "prompts.jsonl"), "--new-tokens", "4")
        lines = [json.dumps({"prompt": p.text}) for p in prompts()]
        (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
        # an earlier recording lies in the folder and is not read
        torch.save({"other": 1}, tmp_path / "dumps" / "expert_distribution_recorder_1.0.pt")
        with pytest.raises(SystemExit) as ended:
            main([*command, "--json", "--format-option", "phase=decode"])
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    assert engine.calls == ["start", "stop", "dump"]
    assert not any("return_routed_experts" in content for _, content in engine.seen)
    trace = Trace.read(tmp_path / "t.parquet")
    assert np.array_equal(trace.loads, expected_loads())
    assert set(trace.phase.tolist()) == {1}
    assert len(json.loads(printed.out)["files"]) == (1 if mode == "stat" else 2)
    assert len(list((tmp_path / "dumps").iterdir())) == (2 if mode == "stat" else 3)


def test_live_traffic_is_recorded_for_a_while_and_an_interruption_dumps(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch", reason="SGLang's recorder writes torch files")
    engine = Engine("sglang", SPEC, folder=tmp_path / "dumps", mode="stat")

    def traffic(seconds):
        """Somebody else's requests."""
        assert seconds == 30
        server = Server(url)
        for item in prompts():
            server.post("/generate", {"text": item.text, "sampling_params": {"max_new_tokens": 4}})
        raise KeyboardInterrupt

    monkeypatch.setattr("moesim.cli.capture.time", type("clock", (), {"sleep": staticmethod(traffic)}))
    with running(engine) as url, pytest.raises(SystemExit) as ended:
        main(recorder_arguments(url, tmp_path, "--seconds", "30"))
    assert ended.value.code == 130
    assert engine.calls == ["start", "stop", "dump"]
    trace = Trace.read(tmp_path / "t.parquet")
    assert np.array_equal(trace.loads, expected_loads())
    assert trace.origin["interrupted"] is True
    assert "Traceback" not in capsys.readouterr().err


def test_recorder_refusals(tmp_path, capsys):
    pytest.importorskip("torch", reason="SGLang's recorder writes torch files")
    plain = Engine("sglang", SPEC)
    with running(plain) as url:
        for command, message in [
            (recorder_arguments(url, tmp_path, "--seconds", "0"), "--expert-distribution-recorder-mode"),
            (recorder_arguments(url, tmp_path), "give either --prompts, or --recorder with --seconds"),
            (
                ["capture", "sglang", "--url", url, "--seconds", "1", "-o", str(tmp_path / "t.parquet")],
                "add --recorder",
            ),
        ]:
            with pytest.raises(SystemExit) as ended:
                main(command)
            assert ended.value.code == 1
            assert message in capsys.readouterr().err
    # a recording that does not fit the model is named and stays
    engine = Engine("sglang", SPEC, folder=tmp_path / "dumps", mode="stat")
    with running(engine) as url, pytest.raises(SystemExit) as ended:
        main([*recorder_arguments(url, tmp_path, "--seconds", "0"), "--model", "mixtral-8x7b"])
    assert ended.value.code == 1
    assert "the recording is kept: " in capsys.readouterr().err
    assert len(list((tmp_path / "dumps").iterdir())) == 1


def test_a_dump_that_never_comes_is_told(tmp_path):
    from moesim.capture.recording import recorded

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "here").mkdir()
    pytest.importorskip("torch", reason="SGLang's recorder writes torch files")
    engine = Engine("sglang", SPEC, folder=elsewhere, mode="stat")
    with (
        running(engine) as url,
        pytest.raises(InputError, match="no new expert_distribution_recorder"),
        recorded(Server(url), tmp_path / "here", wait_s=0.2, still_s=0.05),
    ):
        pass


def test_prompts_of_the_usual_data_sets(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def read(name, text, **more):
        (tmp_path / name).write_text(text)
        return read_prompts(tmp_path / name, **more)

    assert [p.text for p in read("a.txt", "one\n\ntwo words\n")] == ["one", "two words"]
    shared = read("sharegpt.json", json.dumps([{"id": "1", "conversations": [
        {"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}]))  # fmt: skip
    assert shared[0].messages == ({"role": "user", "content": "hi"},)
    bench = read("mt.jsonl", json.dumps({"category": "writing", "turns": ["first", "second"]}))
    assert (bench[0].text, bench[0].domain) == ("first", "writing")
    table = read("d.csv", 'topic,question\nlaw,"what, now?"\nart,why?\n', domain="topic", limit=1)
    assert [(p.text, p.domain) for p in table] == [("what, now?", "law")]
    pq.write_table(pa.table({"instruction": ["x", "y"], "dataset": ["s", "t"]}), tmp_path / "e.parquet")
    assert [(p.text, p.domain) for p in read_prompts(tmp_path / "e.parquet")] == [("x", "s"), ("y", "t")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n\n", "found none"), ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.exe", b"x", "expected a file of prompts"),
        ("a.json", b"{", "expected json"), ("a.jsonl", b"[1]", "expected an object"),
        ("a.jsonl", b'{"x": 1}', "expected a prompt under one of"),
        ("a.jsonl", b'{"prompt": 7}', "expected text, token ids"), ("a.jsonl", b'{"prompt": "  "}', "blank"),
        ("a.jsonl", b'{"messages": [{"role": "assistant", "content": "x"}]}', "message of the user"),
        ("a.jsonl", b'{"input_ids": [-1]}', "ids from 0"), ("a.parquet", b"PAR1", "expected parquet"),
        ("a.json", b"[" * 100000, "expected json"), ("a.csv", b"", "found none"),
    ],
)  # fmt: skip
def test_files_that_hold_no_prompts(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_prompts(tmp_path / name)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="No such file"):
        read_prompts(tmp_path / "nowhere.txt")


def test_the_encodings_are_those_of_the_engines():
    """The fixture itself, against the formats as documented: little-endian int32, or a .npy file; dense rows 0."""
    import base64
    import io

    routes = routes_of(SPEC, "a", 3)
    sglang = Engine("sglang", SPEC).answer("/generate", {
        "text": "a", "sampling_params": {"max_new_tokens": 2}, "return_routed_experts": True})  # fmt: skip
    raw = base64.b64decode(sglang["meta_info"]["routed_experts"])
    assert raw == padded(SPEC, routes).astype("<i4").tobytes()
    vllm = Engine("vllm", SPEC).answer("/v1/completions", {"prompt": "a", "max_tokens": 2})
    array = np.load(io.BytesIO(base64.b64decode(vllm["choices"][0]["routed_experts"])))
    assert (array.dtype, array.shape) == (np.uint8, (2, 5, 2))
    assert not array[:, [0, 3]].any()
