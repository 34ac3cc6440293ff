"""The command line starts fast, stops cleanly, and says what is wrong in usage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Run

HEAVY = ("torch", "ortools", "streamlit", "plotly", "networkx", "numba", "scipy", "pyarrow", "numpy", "simpy")
HALF_A_SECOND = 0.5


def least_cpu_s(*arguments: str) -> float:
    """Return the least CPU seconds of three runs: a busy machine stretches the clock on the wall more."""
    took = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        took.append(used.ru_utime + used.ru_stime)
    return min(took)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


VERBS = (
    "",
    "demo",
    "solve",
    "simulate",
    "compare",
    "inspect",
    "import",
    "export",
    "train",
    "capture",
    "capture bundled",
    "app",
)


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_heavy(verb: str):
    done = python(
        "import sys\nfrom moesim.cli import main\n"
        f"try: main({[*verb.split(), '--help']!r})\nexcept SystemExit as end: assert not end.code\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.skipif(os.name != "posix", reason="CPU seconds of a child as POSIX counts them")
def test_help_answers_within_half_a_second_warm():
    # on a machine that takes longer for what any such program imports, in proportion
    usual_s = least_cpu_s("-c", "import typer, rich.console, rich.panel, rich.table")
    assert least_cpu_s("-m", "moesim", "--help") < max(HALF_A_SECOND, 6 * usual_s)


def test_no_verb_prints_help_and_is_a_usage_error(run: Run):
    done = run()
    assert done.code == 2
    assert "Usage" in done.out + done.err


@pytest.mark.parametrize(
    "arguments", [["compare"], ["solve", "x.parquet"], ["no-such-verb"], ["demo", "--no-such-option"]]
)
def test_usage_errors_end_with_two(arguments: list[str], run: Run):
    done = run(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_control_c_is_clean(trace_file: Path, tmp_path: Path):
    plan = tmp_path / "plan.json"
    command = [sys.executable, "-m", "moesim", "solve", str(trace_file), "-t", "h100-4x8-rail", "--slots-per-rank", "3",
               "--tokens-per-rank", "16", "-o", str(plan)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    # the first line of progress: imports are over, work has begun
    first = process.stderr.readline()
    assert "packing steps" in first
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.endswith("moesim: interrupted\n")
    assert not list(tmp_path.iterdir())
