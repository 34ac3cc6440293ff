"""docs/formats.md says what the importers do: its commands run, its tables name every format and option."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from foreign import (
    SPEC,
    responses,
    sample_trace,
    write_flame,
    write_lines,
    write_loads,
    write_megatron,
    write_passes,
    write_selection,
    write_stat,
    write_tokens,
    write_trtllm,
)

from moesim.cli import main
from moesim.presets import ALIASES, NOTES, PRESETS
from moesim.trace import TRACE_FORMATS, Trace
from moesim.trace.scenarios import SCENARIOS

CONFIG = {
    "hidden_size": 16, "moe_intermediate_size": 32, "intermediate_size": 32, "num_hidden_layers": 5, "num_experts": 8,
    "num_experts_per_tok": 2, "mlp_only_layers": [0, 3],
}  # fmt: skip
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
OURS = {"parquet", "parts"}
COMMANDS = re.search(r"```sh\n(moesim import .*?)```", DOCUMENT.read_text(), re.DOTALL)[1].splitlines()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a file of every kind, named as in the commands."""
    monkeypatch.chdir(tmp_path)
    trace = sample_trace()
    for name in ("my-model", "per_pass", "per_token", "expert_statistic", "router_trace", "profiling_result", "flame"):
        (tmp_path / name).mkdir()
    (tmp_path / "my-model" / "config.json").write_text(json.dumps(CONFIG))
    np.savez(tmp_path / "routing.npz", experts=trace.routes)
    lines = [json.dumps(item | {"category": "law"}) for item in responses(trace)]
    (tmp_path / "responses.jsonl").write_text("\n".join(lines))
    write_trtllm(tmp_path / "expert_statistic", trace)
    write_megatron(tmp_path / "router_trace", trace)
    write_loads(tmp_path, trace)
    write_selection(tmp_path / "profiling_result", trace)
    write_flame(tmp_path / "flame", trace, np.ones(trace.routes.shape))
    write_lines(tmp_path, trace)
    return tmp_path


def with_torch(folder: Path) -> None:
    pytest.importorskip("torch", reason="torch reads the files of SGLang's recorder")
    trace = sample_trace()
    write_stat(folder, trace)
    write_passes(folder / "per_pass", trace)
    write_tokens(folder / "per_token", trace)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run(command, folder, capsys):
    if "recorder" in command or "per_token" in command:
        with_torch(folder)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command)[1:])
    assert not ended.value.code, capsys.readouterr().err
    trace = Trace.read(folder / "trace.parquet")
    assert trace.spec.layer_ids == SPEC.layer_ids
    assert np.array_equal(trace.loads, sample_trace().loads)


def table(first: str) -> list[list[str]]:
    """Rows of the table whose header begins so, without header and rule."""
    text = DOCUMENT.read_text()
    rows = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_there_is_a_command_and_a_row_for_every_format():
    named = [row[0].strip("` |") for row in table("format | file")]
    assert sorted(named) == sorted(set(TRACE_FORMATS.names()) - OURS)
    assert len(COMMANDS) == len(named)


def test_every_option_is_in_the_table_and_of_the_formats_it_names():
    formats = set(TRACE_FORMATS.names()) - OURS
    said: dict[str, set[str]] = {}
    for options, where, _ in table("option | of"):
        others = set(re.findall(r"`([\w-]+)`", where))
        these = formats - others if where.startswith("all") else others
        for option in re.findall(r"`(\w+)`", options):
            said[option] = these
    for name in formats:
        known = set(list(inspect.signature(TRACE_FORMATS.get(name).read).parameters)[1:])
        # npz has a table of its own
        known -= {"layers", "counts"} if name == "npz" else set()
        assert known == {option for option, where in said.items() if name in where}, name


def test_the_table_of_presets_is_true():
    rows = {row[0].strip("` "): row[1:] for row in table("preset | layers")}
    assert list(rows) == list(PRESETS)
    for name, spec in PRESETS.items():
        layers, experts, picks, shared, groups, total, active, note = rows[name]
        assert layers == f"{spec.layers} of {spec.num_hidden_layers}"
        assert (int(experts), int(picks)) == (spec.experts, spec.top_k)
        assert shared == str(spec.shared_experts or "-")
        assert groups == (f"{spec.group_limit} of {spec.groups}" if spec.groups > 1 else "-")
        assert total == f"{spec.parameters() / 1e9:.1f} B"
        assert active == f"{spec.parameters(active=True) / 1e9:.1f} B"
        assert NOTES.get(name, "") in note
        assert all(f"`{other}`" in note for other, of in ALIASES.items() if of == name)


def test_the_table_of_scenarios_is_true():
    assert {row[0].strip("| "): row[1].strip("`") for row in table("scenario | name")} == SCENARIOS
