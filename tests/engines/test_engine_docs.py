"""docs/engines.md: its commands run, from capture to launch, and print the arguments that the page gives."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from moesim.cli import main
from moesim.placement import EMPTY, Placement
from moesim.placement.launch import RULES, engine_formats
from moesim.spec import ModelSpec

SECTIONS = ["SGLang", "vLLM", "vllm-ascend", "TensorRT-LLM"]


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "engines.md").read_text()


def section(page: str, title: str) -> str:
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def routed(spec: ModelSpec, seed: int) -> np.ndarray:
    """Routes of one request, int [tokens, decoder layers, top_k], dense layers 0 as engines leave them."""
    rng = np.random.default_rng(seed)
    popular = rng.dirichlet(np.ones(spec.experts))
    noise = rng.gumbel(size=(24, spec.num_hidden_layers, spec.experts))
    picks = np.argsort(-np.log(popular) - noise, axis=2)[:, :, : spec.top_k]
    picks[:, [layer for layer in range(spec.num_hidden_layers) if layer not in spec.layer_ids]] = 0
    return picks


def write_responses(path: Path, spec: ModelSpec, *, npy: bool) -> None:
    """Write what a server answers, one response a line, in vLLM's (npy) or SGLang's encoding."""
    lines = []
    for request in range(12):
        picks = routed(spec, request)
        buffer = io.BytesIO()
        np.save(buffer, picks.astype(np.uint8))
        data = base64.b64encode(buffer.getvalue() if npy else picks.astype("<i4").tobytes()).decode()
        found = {"routed_experts": data}
        lines.append({"choices": [found]} if npy else {"meta_info": found | {"prompt_tokens": 9}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


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


@pytest.mark.parametrize("title", SECTIONS)
def test_from_capture_to_launch(
    title: str, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_responses(tmp_path / "sglang.jsonl", ModelSpec.preset("gpt-oss-20b"), npy=False)
    write_responses(tmp_path / "vllm.jsonl", ModelSpec.preset("gpt-oss-20b"), npy=True)
    write_responses(tmp_path / "vllm-lite.jsonl", ModelSpec.preset("deepseek-v2-lite"), npy=True)
    write_responses(tmp_path / "vllm-mixtral.jsonl", ModelSpec.preset("mixtral-8x7b"), npy=True)
    if title == "TensorRT-LLM":
        write_statistics(tmp_path / "expert_statistic", ModelSpec.preset("mixtral-8x7b"))
    text = section(page, title)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert [shlex.split(line)[1] for line in commands[-3:]] == ["import", "solve", "export"]
    for command in commands:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(command)[1:], "--json"])
        printed = capsys.readouterr()
        assert not ended.value.code, f"{command}: {printed.err}"
    launch = json.loads(printed.out)["launch"]
    assert f"$ {launch['command_line']}\n" in text
    if launch["config"]:
        [shown] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        assert yaml.safe_load(shown) == yaml.safe_load(launch["config"])


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
