"""docs/engines: their commands run, from capture to launch, and print the arguments that the pages give."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import yaml
from capture.engine_server import Engine, running

from moesim.cli import main
from moesim.placement import EMPTY, Placement
from moesim.placement.launch import RULES, engine_formats
from moesim.spec import ModelSpec
from moesim.trace import Trace

PAGES = {"sglang": "SGLang", "vllm": "vLLM", "vllm-ascend": "vllm-ascend", "tensorrt-llm": "TensorRT-LLM"}
WORDS = ["the", "router", "sends", "each", "token", "to", "a", "few", "of", "many", "experts", "and", "they", "answer"]


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "docs" / "engines"


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "engines.md").read_text()


def commands_of(text: str) -> list[list[str]]:
    """The commands of a page, one list a block."""
    return [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]


def write_prompts(path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [
        {"prompt": f"{i} " + " ".join(rng.permutation(WORDS)), "domain": ("law", "code")[i % 2]} for i in range(30)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@contextlib.contextmanager
def serving(command: str, folder: Path) -> Iterator[str]:
    """Start the server that a capture wants, and yield the command with its address."""
    words = shlex.split(command)
    if words[1] != "capture" or "--url" not in words:
        yield command
        return
    url = words[words.index("--url") + 1]
    spec = ModelSpec.preset(words[words.index("--model") + 1])
    (folder / "dumps").mkdir(exist_ok=True)
    engine = Engine(words[2], spec, folder=folder / "dumps", mode="stat" if words[2] == "sglang" else None)
    with running(engine) as address:
        if "--seconds" in words:
            # traffic before the recorder starts is not of the recording; this is what comes while it runs
            engine.live = [{"text": line, "sampling_params": {"max_new_tokens": 3}} for line in WORDS]
        yield command.replace(url, address)


def write_statistics(folder: Path, spec: ModelSpec) -> None:
    """Write TensorRT-LLM's expert statistics of two ranks."""
    numpy = pytest.importorskip("safetensors.numpy", reason="TensorRT-LLM writes its statistics as safetensors")
    folder.mkdir()
    (folder / "meta_info.json").write_text(
        json.dumps({"num_experts": spec.experts, "num_experts_per_token": spec.top_k})
    )
    for rank in range(2):
        counts = np.random.default_rng(rank).integers(1, 99, (spec.layers, spec.experts))
        named = {f"100_{layer}": row.copy() for layer, row in zip(spec.layer_ids, counts, strict=True)}
        numpy.save_file(named, folder / f"rank{rank}.safetensors")


def run(command: str, capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(command)[1:], "--json"])
    printed = capsys.readouterr()
    assert not ended.value.code, f"{command}: {printed.err}"
    return json.loads(printed.out)


@pytest.mark.parametrize("name", PAGES)
def test_from_capture_to_launch(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "prompts.jsonl")
    if name == "tensorrt-llm":
        write_statistics(tmp_path / "expert_statistic", ModelSpec.preset("mixtral-8x7b"))
    text = (folder / f"{name}.md").read_text()
    [commands, *_] = commands_of(text)
    assert [shlex.split(line)[1] for line in commands[-3:]] == ["capture", "solve", "export"]
    for command in commands:
        with serving(command, tmp_path) as adapted:
            found = run(adapted, capsys)
    launch = found["launch"]
    assert f"$ {launch['command_line']}\n" in text
    if launch["config"]:
        [shown] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        assert yaml.safe_load(shown) == yaml.safe_load(launch["config"])


def test_the_recorder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="SGLang's recorder writes torch files")
    monkeypatch.chdir(tmp_path)
    [_, commands] = commands_of((folder / "sglang.md").read_text())
    for command in commands:
        with serving(command, tmp_path) as adapted:
            run(adapted, capsys)
    trace = Trace.read(tmp_path / "counts.parquet")
    assert trace.loads.sum() > 0
    assert set(trace.phase.tolist()) == {1}


def test_transformers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="needs transformers: pip install 'moesim[capture]'")
    from capture.families import tiny

    monkeypatch.chdir(tmp_path)
    tiny("qwen3_moe").save_pretrained(tmp_path / "my-moe")
    tokens = np.random.default_rng(0).integers(3, 97, (6, 5)).tolist()
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in tokens))
    text = (folder / "transformers.md").read_text()
    for command in chain.from_iterable(commands_of(text)):
        run(command, capsys)
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/engines/transformers.md", "exec"), {})
        [expected] = re.findall(r"^print\(.*\)\s+# (.*)$", code, re.MULTILINE)
        assert printed.getvalue().strip() == expected


def test_a_refusal_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Placement([[[0, 1], [2, EMPTY]]], 3).write(tmp_path / "holes.json")
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "holes.json"), "--to", "vllm", "-o", str(tmp_path / "e.json")])
    assert ended.value.code == 1
    assert "rule 'full slots'" in capsys.readouterr().err
    assert not (tmp_path / "e.json").exists()


def test_the_migration(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/engines.md", "exec"), {})
    assert printed.getvalue().split() == re.findall(r"^print\(.*\)\s+# (.*)$", code, re.MULTILINE)


def test_every_rule_and_every_format_is_on_the_page(page: str) -> None:
    for rule in RULES:
        assert f"\n| {rule} |" in page
    for format in engine_formats():
        assert f"`{format}`" in page
