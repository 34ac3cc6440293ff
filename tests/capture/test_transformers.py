"""`moesim capture transformers`: padding left out, phases told apart, nothing lost when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from capture.families import VOCABULARY, Eavesdropper, tiny, torch, transformers
from moesim.base.errors import InputError, MoesimError
from moesim.capture.generate import Generation, Loaded, capture_transformers, run
from moesim.capture.prompts import Prompt
from moesim.cli import main
from moesim.trace import Trace, read_any

LENGTHS = (5, 9, 2, 7, 7, 3, 11)


def picked(routes):
    return [[sorted(e for e in row if e >= 0) for row in layer] for layer in routes.transpose(1, 0, 2).tolist()]


def prompts(lengths=LENGTHS):
    rng = np.random.default_rng(3)
    names = ("code", "law")
    return [
        Prompt(i, tokens=tuple(map(int, rng.integers(3, VOCABULARY, length))), domain=names[i % 2])
        for i, length in enumerate(lengths)
    ]


def write_prompts(path, items):
    path.write_text("".join(json.dumps({"input_ids": list(p.tokens), "domain": p.domain}) + "\n" for p in items))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved tiny DeepSeek-V3: groups, a bias, a dense layer."""
    path = tmp_path_factory.mktemp("model") / "tiny-deepseek"
    tiny("deepseek_v3").save_pretrained(path)
    return path


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss", "llama4_text", "qwen3_next", "longcat_flash"])
def test_batches_with_padding_record_what_each_prompt_alone_decides(family, tmp_path):
    model = tiny(family)
    items = prompts()
    how = Generation(new_tokens=5, batch=4)
    tokens = run(Loaded(model), items, tmp_path / "t.parquet", how=how, origin={})
    trace = Trace.read(tmp_path / "t.parquet")
    assert trace.tokens == tokens
    assert not trace.has_steps
    for item in items:
        mine = trace.select(trace.request == item.number)
        ids = torch.tensor([item.tokens])
        with torch.no_grad():
            full = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
            answer = full[0, len(item.tokens) :].tolist()
            fed = answer[: answer.index(2)] if 2 in answer else answer[:-1]
            told = Eavesdropper(family, model)
            model(torch.tensor([[*item.tokens, *fed]]), use_cache=False)
        for handle in told.handles:
            handle.remove()
        assert mine.position.tolist() == list(range(len(item.tokens) + len(fed)))
        assert mine.phase.tolist() == [0] * len(item.tokens) + [1] * len(fed)
        assert {mine.domains[code] for code in mine.domain} == {item.domain}
        expected = [[sorted(e for e in row if e < trace.spec.experts) for row in layer] for layer in told.experts()]
        found = [
            [sorted(e for e in row if e >= 0) for row in layer] for layer in mine.routes.transpose(1, 0, 2).tolist()
        ]
        assert found == expected


def test_prefill_alone(folder, tmp_path):
    file = write_prompts(tmp_path / "p.jsonl", prompts())
    capture_transformers(folder, file, tmp_path / "t.parquet", how=Generation(new_tokens=0, batch=3))
    trace = Trace.read(tmp_path / "t.parquet")
    assert trace.tokens == sum(LENGTHS)
    assert set(trace.phase.tolist()) == {0}
    assert trace.spec.name == "tiny-deepseek"
    assert (trace.spec.layer_ids, trace.spec.groups, trace.spec.shared_experts) == ((1, 2), 4, 1)
    assert trace.origin["prompts"]["count"] == len(LENGTHS)
    assert trace.weights.sum(-1) == pytest.approx(2.5, abs=0.01)


def encoder_decoder(family):
    """A tiny Switch Transformer or NLLB-MoE: experts in an encoder and a decoder, which can be full."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    common = {"vocab_size": VOCABULARY, "num_experts": 4, "expert_capacity": 1, "d_model": 16, "pad_token_id": 0}
    facts = {
        "switch_transformers": {
            "d_ff": 24, "d_kv": 4, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "encoder_sparse_step": 2,
            "decoder_sparse_step": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
            "decoder_start_token_id": 0, "eos_token_id": 2,
        },
        "nllb-moe": {
            "moe_eval_capacity_token_fraction": 0.2,
            "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
            "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_sparse_step": 2,
            "decoder_sparse_step": 2, "max_position_embeddings": 64, "decoder_start_token_id": 2, "eos_token_id": 2,
        },
    }[family]  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForSeq2SeqLM.from_config(CONFIG_MAPPING[family](**(common | facts))).eval()


@pytest.mark.parametrize(("family", "top_k"), [("switch_transformers", 1), ("nllb-moe", 2)])
def test_an_encoder_and_a_decoder_are_two_stacks_of_layers(family, top_k, tmp_path):
    model = encoder_decoder(family)
    said = {}

    def note(name):
        def hook(module, args, output):
            said.setdefault(name, []).append(output[0 if top_k == 1 else 1].reshape(-1, 4))

        return hook

    for name, module in model.named_modules():
        if name.endswith(".router"):
            module.register_forward_hook(note(name.split(".")[1] if name.startswith("model") else name.split(".")[0]))
    run(Loaded(model), prompts((6, 6)), tmp_path / "t.parquet", how=Generation(new_tokens=3, batch=2), origin={})
    trace = Trace.read(tmp_path / "t.parquet")
    assert (trace.layers, trace.spec.top_k, trace.spec.experts) == (2, top_k, 4)
    prefill = trace.of_phase("prefill")
    assert prefill.tokens == 12
    assert (prefill.routes[:, 1] == -1).all()
    assert (trace.of_phase("decode").routes[:, 0] == -1).all()
    expected = [sorted(np.flatnonzero(row).tolist()) for row in torch.cat(said["encoder"]).detach().numpy()]
    assert [sorted(e for e in row if e >= 0) for row in prefill.routes[:, 0].tolist()] == expected
    # experts are full: some tokens were dropped
    assert (prefill.routes[:, 0] == -1).any()
    assert (prefill.routes[:, 0] >= 0).any()


def command(folder, file, output, *more):
    return [
        "capture", "transformers", "--model", str(folder), "--prompts", str(file), "-o", str(output),
        "--new-tokens", "4", "--batch", "2", *more,
    ]  # fmt: skip


def test_the_command_and_its_refusals(folder, tmp_path, capsys):
    file = write_prompts(tmp_path / "p.jsonl", prompts())
    output = tmp_path / "t.parquet"
    with pytest.raises(SystemExit) as ended:
        main([*command(folder, file, output), "--json", "--no-weights", "--temperature", "1"])
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    trace = Trace.read(output)
    assert json.loads(printed.out)["tokens"] == trace.tokens
    assert trace.weights is None
    assert "7 of 7 prompts" in printed.err
    nowhere = tmp_path / "nowhere"
    (tmp_path / "text.txt").write_text("hello\n")
    (tmp_path / "big.jsonl").write_text('{"input_ids": [3, 500]}\n')
    tiny("mixtral").save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    transformers.AutoConfig.for_model("llama", vocab_size=97).save_pretrained(tmp_path / "dense")
    for arguments, message in [
        (command(nowhere, file, output), "nowhere: transformers cannot load it"),
        (command(tmp_path / "cut", file, output), "cut: transformers cannot load it"),
        (command(folder, nowhere, output), "expected a file of prompts"),
        (command(folder, tmp_path / "text.txt", output), "has no tokenizer"),
        (command(folder, tmp_path / "big.jsonl", output), "expected token ids below 97"),
        (command(folder, file, output, "--device", "cuda:7"), "--device cuda:7"),
        (command(folder, file, output, "--dtype", "float7"), "transformers cannot load it"),
        (command(tmp_path / "dense", file, output), "cannot load it"),
        (command(folder, file, output, "--new-tokens", "9999"), "context holds"),
    ]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        err = capsys.readouterr().err.splitlines()[-1]
        assert ended.value.code == 1, (arguments, err)
        assert message in err


def start(folder, file, output, pause):
    """The command in a process of its own, which takes its time after each batch."""
    code = (
        f"import sys, time; sys.path[:0] = {sys.path!r}\n"
        "import moesim.capture.generate as g; from moesim.cli import main\n"
        "plain = g.forward\n"
        f"g.forward = lambda *a: (time.sleep({pause}), plain(*a))[1]\n"
        f"main({command(folder, file, output)!r})\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=os.environ)


def wait_for_parts(output, count, process):
    parts = output.with_name(output.name + ".parts")
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        if len(list(parts.glob("0*.parquet"))) >= count:
            return
        time.sleep(0.02)
    pytest.fail(f"no {count} parts: {process.communicate()[1]}")


def test_killed_it_goes_on_and_the_trace_is_that_of_one_run(folder, tmp_path):
    items = prompts((5, 9, 2, 7, 7, 3, 11, 4, 6, 8))
    file = write_prompts(tmp_path / "p.jsonl", items)
    output, whole = tmp_path / "t.parquet", tmp_path / "whole.parquet"
    process = start(folder, file, output, 0.3)
    wait_for_parts(output, 2, process)
    process.kill()
    process.communicate()
    assert not output.exists()
    left = read_any(f"{output}.parts")
    assert left.tokens > 0
    how = Generation(new_tokens=4, batch=2)
    with pytest.raises(InputError, match="holds what another capture left"):
        capture_transformers(folder, file, output, how=Generation(new_tokens=3, batch=2))
    capture_transformers(folder, file, output, how=how)
    capture_transformers(folder, file, whole, how=how)
    assert Trace.read(output) == Trace.read(whole)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_writes_what_it_has(sent, folder, tmp_path, monkeypatch, capsys):
    from moesim.capture import generate

    file = write_prompts(tmp_path / "p.jsonl", prompts((5, 9, 2, 7, 7, 3, 11, 4, 6, 8)))
    plain = generate.forward

    def forward(net, batch, how, number):
        if number == 2:
            os.kill(os.getpid(), sent)
        return plain(net, batch, how, number)

    monkeypatch.setattr(generate, "forward", forward)
    with pytest.raises(SystemExit) as ended:
        main(command(folder, file, tmp_path / "t.parquet"))
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err
    trace = Trace.read(tmp_path / "t.parquet")
    assert trace.origin["interrupted"] is True
    assert len(np.unique(trace.request)) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl", "t.parquet"]


def test_memory_is_bounded_by_a_batch(tmp_path, monkeypatch):
    """What a batch leaves in the recorder is taken before the next one runs."""
    from moesim.capture import recorder as module

    model, most = tiny("mixtral"), []
    plain = module.Recorder.drain

    def drain(self):
        most.append(sum(seat.tokens for _, seat in self._home))
        return plain(self)

    monkeypatch.setattr(module.Recorder, "drain", drain)
    run(Loaded(model), prompts((6,) * 20), tmp_path / "t.parquet", how=Generation(new_tokens=3, batch=2), origin={})
    assert len(most) == 10
    assert max(most) == 2 * (6 + 2) * 3


def test_a_tokenizer_and_a_chat_template(folder, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 3, "b": 4, "user": 5, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    model = tmp_path / "model"
    tiny("mixtral").save_pretrained(model)
    fast.save_pretrained(model)
    file = tmp_path / "p.json"
    file.write_text(json.dumps([{"text": "a b a"}, {"messages": [{"role": "user", "content": "a"}]}]))
    with pytest.raises(MoesimError, match="chat template fails"):
        capture_transformers(model, file, tmp_path / "t.parquet", how=Generation(0))
    fast.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    fast.save_pretrained(model)
    capture_transformers(model, file, tmp_path / "t.parquet", how=Generation(0))
    assert np.unique(Trace.read(tmp_path / "t.parquet").request, return_counts=True)[1].tolist() == [3, 2]


def test_a_model_of_images_and_text_runs_on_text(tmp_path):
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 8,
        "num_experts_per_tok": 2, "max_position_embeddings": 128, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config=vision)
    transformers.Qwen3VLMoeForConditionalGeneration(config).save_pretrained(tmp_path / "tiny-vl")
    file = write_prompts(tmp_path / "p.jsonl", prompts((4, 2, 3)))
    capture_transformers(tmp_path / "tiny-vl", file, tmp_path / "t.parquet", how=Generation(new_tokens=0))
    trace = Trace.read(tmp_path / "t.parquet")
    assert (trace.tokens, trace.spec.layer_ids, trace.spec.experts) == (9, (0, 1), 8)
