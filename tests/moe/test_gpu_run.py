"""The one command for a GPU machine, tried out on the CPU: what it leaves is what traces/, weights and tables need."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'moesim[gpu]'")

from moesim.base.errors import FormatError
from moesim.costs.table import read_tables
from moesim.moe import load_model
from moesim.moe.corpus import DOMAINS, PARTS, Document
from moesim.moe.corpus.pack import write_corpus
from moesim.moe.gpu_run import pack, phases
from moesim.moe.gpu_run.__main__ import main
from moesim.moe.gpu_run.phases import PHASES, Command, Phase, Setting
from moesim.moe.gpu_run.run import run
from moesim.trace import DECODE, PREFILL, Trace


@pytest.fixture
def corpus(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "corpus"
    folder.mkdir()
    documents = [
        Document(domain, part, number, " ".join(map(str, rng.integers(0, 10_000, 120))))
        for number, (domain, part) in enumerate((d, p) for d in DOMAINS for p in PARTS for _ in range(2))
    ]
    write_corpus(documents, folder / "corpus.parquet")
    return folder


def test_a_dry_run_leaves_every_artefact(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    work, out = tmp_path / "work", tmp_path / "out"
    command = ["--corpus", str(corpus), "--out", str(out), "--work", str(work), "--dry-run", "--minutes", "8"]
    code = main(command)
    assert code == 0, (out / "summary.md").read_text() + "".join(log.read_text() for log in work.glob("*.log"))
    summary = (out / "summary.md").read_text()
    assert all(f"| {name} | done |" in summary for name in PHASES)
    assert "dry run on a CPU" in summary
    assert summary == capsys.readouterr().out
    files = list(out.iterdir())
    assert len(files) <= 8
    assert all(file.is_file() and file.stat().st_size <= 16 * 2**20 for file in files)

    tree = tmp_path / "tree"
    assert main(["--out", str(out), "--unpack", str(tree)]) == 0
    names = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert {
        "weights/config.json", "weights/tokenizer.json", "weights/weights.json",
        "weights/model-01-of-01.safetensors", "traces/bundled-moe-fit.parquet", "traces/bundled-moe-eval.parquet",
        "tables/kernel-tables.json", "tables/profile.json", "logs/facts.json", "logs/tests.xml", "logs/kernels.log",
        "logs/profile-rows.jsonl",
    } <= names  # fmt: skip
    bundle = load_model(tree / "weights")
    for part in ("fit", "eval"):
        trace = Trace.read(tree / f"traces/bundled-moe-{part}.parquet")
        assert trace.origin["weights_digest"] == bundle.digest
        assert set(trace.phase.tolist()) == {PREFILL, DECODE}
        assert set(trace.domain.tolist()) == set(range(len(DOMAINS)))
    # tried out on a CPU, so that nothing may call it a GPU
    assert read_tables(tree / "tables/kernel-tables.json").tables[0].device.startswith("CPU, ")
    checked = (tree / "logs/kernels.log").read_text().splitlines()[1:]
    assert all(json.loads(line)["ok"] for line in checked)

    # done phases are not run again
    before = (work / "state.json").read_text()
    assert main(command) == 0
    assert (work / "state.json").read_text() == before


@pytest.fixture
def setting(corpus, tmp_path):
    return Setting(corpus, tmp_path / "work", tmp_path / "out", "cpu", dry=True)


def pretend(monkeypatch, **scripts):
    """Phases that run a line of Python each."""
    made = {
        name: Phase(1.0, needs, lambda s, m, text=text: [Command(("-c", text))])
        for name, (needs, text) in scripts.items()
    }
    for module in ("run", "__main__"):
        monkeypatch.setattr(f"moesim.moe.gpu_run.{module}.PHASES", made)
    return tuple(made)


def states(setting):
    return {name: s["status"] for name, s in json.loads((setting.work / "state.json").read_text())["phases"].items()}


def test_a_failed_phase_stops_those_that_need_it_and_no_others(setting, monkeypatch, tmp_path):
    flag = tmp_path / "flag"
    names = pretend(
        monkeypatch,
        one=((), f"import os; assert os.path.exists({str(flag)!r}), 'no flag'"),
        two=(("one",), ""),
        three=((), ""),
    )
    assert not run(setting, names, 1.0)
    assert states(setting) == {"one": "failed", "two": "skipped", "three": "done"}
    assert "no flag" in (setting.out / "summary.md").read_text()
    flag.touch()
    assert run(setting, names, 1.0)
    assert set(states(setting).values()) == {"done"}


def test_a_phase_that_takes_too_long_is_stopped_and_said_to_be(setting, monkeypatch):
    names = pretend(monkeypatch, long=((), "import time; time.sleep(60)"))
    assert not run(setting, names, 0.1)
    assert states(setting) == {"long": "failed"}
    assert "out of time" in (setting.out / "summary.md").read_text()


def test_what_hangs_costs_the_others_nothing_and_takes_its_workers_along(setting, monkeypatch, tmp_path):
    monkeypatch.setattr("moesim.moe.gpu_run.run._LEAST_S", 1.0)
    mark = tmp_path / "mark"
    worker = f"import time; time.sleep(6); open({str(mark)!r}, 'w')"
    start = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {worker!r}]); time.sleep(60)"
    names = pretend(
        monkeypatch,
        hangs=((), start),
        others=((), ""),
        more=((), ""),
        last=((), ""),
    )
    begin = time.monotonic()
    assert not run(setting, names, 0.2)
    assert states(setting) == {"hangs": "failed", "others": "done", "more": "done", "last": "done"}
    time.sleep(max(0.0, 8 - (time.monotonic() - begin)))
    assert not mark.exists()


def test_what_is_too_large_to_come_back_is_left_out_whole_and_named(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "TOTAL_BYTES", 5000)
    (setting.work / "model").mkdir(parents=True)
    setting.out.mkdir()
    noise = np.random.default_rng(0)
    (setting.work / "model/model-01-of-01.safetensors").write_bytes(noise.bytes(3000))
    for part, size in (("fit", 1000), ("eval", 2000)):
        (setting.work / f"bundled-moe-{part}.parquet").write_bytes(noise.bytes(size))
    assert pack.bring(setting, {}) == ["traces/bundled-moe-eval.parquet"]
    assert json.loads((setting.out / "manifest.json").read_text())["left_out"] == ["traces/bundled-moe-eval.parquet"]
    assert sorted(pack.unpack(setting.out, tmp_path / "tree")) == [
        "traces/bundled-moe-fit.parquet", "weights/model-01-of-01.safetensors",
    ]  # fmt: skip


def test_a_refused_command_has_standins(setting, monkeypatch):
    made = {
        "ask": Phase(
            1.0, (), lambda s, m: [Command(("-c", "raise SystemExit(1)"), standins=(("-c", "print('less')"),))]
        ),
        "crash": Phase(1.0, (), lambda s, m: [Command(("-c", "raise SystemExit(2)"), standins=(("-c", ""),))]),
    }
    monkeypatch.setattr("moesim.moe.gpu_run.run.PHASES", made)
    run(setting, tuple(made), 1.0)
    # a crash is no refusal
    assert states(setting) == {"ask": "done", "crash": "failed"}


def test_a_state_of_another_kind_of_run_is_refused(corpus, tmp_path, monkeypatch, capsys):
    names = pretend(monkeypatch, one=((), ""))
    run(Setting(corpus, tmp_path / "work", tmp_path / "out", "cpu", dry=True), names, 1.0)
    code = main(
        ["--corpus", str(corpus), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--phases", "one"]
    )
    assert code == 1
    assert "of another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--phases", "trian"], "unknown phase 'trian': did you mean 'train'"),
        (["--corpus", "nowhere"], "no corpus.parquet"),
    ],
)
def test_bad_options_are_one_line(corpus, tmp_path, capsys, options, message):
    base = ["--corpus", str(corpus), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert main([*base, *options]) == 1
    assert message in capsys.readouterr().err


def test_damage_on_the_way_back_is_found(setting, tmp_path):
    setting.work.mkdir()
    (setting.work / "one.log").write_text("a line\n")
    setting.out.mkdir()
    pack.bring(setting, {})
    assert pack.unpack(setting.out, tmp_path / "tree") == ["logs/one.log"]
    part = next(setting.out.glob("*.part"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FormatError, match="differs from the manifest's; bring it back again"):
        pack.unpack(setting.out, tmp_path / "tree")
    part.unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        pack.unpack(setting.out, tmp_path / "tree")


def test_large_artefacts_are_cut_and_joined_again(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "LIMIT_BYTES", 1000)
    setting.work.mkdir()
    setting.out.mkdir()
    data = np.random.default_rng(0).bytes(3500)
    (setting.work / "one.log").write_bytes(data)
    pack.bring(setting, {})
    assert len(list(setting.out.glob("*.part"))) == 4
    pack.unpack(setting.out, tmp_path / "tree")
    assert (tmp_path / "tree/logs/one.log").read_bytes() == data
    (setting.work / "one.log").write_bytes(b"less")
    pack.bring(setting, {})
    assert len(list(setting.out.glob("*.part"))) == 1


def test_the_larger_model_fits_what_can_be_brought_back(tmp_path):
    config = phases.LARGER
    layer = 3 * config.hidden * config.intermediate * (config.experts + config.shared_experts)
    layer += config.hidden * (4 * config.hidden + config.experts)
    assert 2 * (config.layers * layer + config.vocabulary * config.hidden) < 48e6
    assert sum(phase.share for phase in PHASES.values()) == pytest.approx(1.0)


def test_commands_of_the_real_run_are_ones_that_exist(setting, monkeypatch):
    """The dry run takes other options: those of the real one must parse too."""
    from typer.testing import CliRunner

    from moesim.cli.app import app

    real = Setting(setting.corpus, setting.work, setting.out, "cuda")
    setting.work.mkdir()
    seen = 0
    for phase in PHASES.values():
        for command in phase.commands(real, 1.0):
            if command.arguments[:2] == ("-m", "moesim"):
                arguments = [*command.arguments[2:], "--help"]
                assert CliRunner().invoke(app, arguments).exit_code == 0, arguments
                seen += 1
    assert seen == 4
    shutil.rmtree(setting.work)
