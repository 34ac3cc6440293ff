"""Running phases: budgets, a log each, a state that outlives a stop, and what is packed at the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from moesim.base.errors import InputError, UnknownName
from moesim.base.files import write_text
from moesim.moe.gpu_run.pack import bring
from moesim.moe.gpu_run.phases import PHASES, Command, Setting, python
from moesim.moe.gpu_run.report import table
from moesim.moe.profile.device import commit

_GRACE_S: Final = 5.0
_OVERRUN: Final = 2.0
"""How many times its share a phase may take while others wait: what hangs must not cost them."""
_LEAST_S: Final = 60.0
"""What every phase may take all the same: a first import on a cold machine is slow, and all phases need the facts."""
_REFUSED: Final = 1


def run(setting: Setting, chosen: tuple[str, ...], minutes: float) -> bool:
    """Run the chosen phases that are not done yet, pack what there is, and return whether all are done.

    Raises
    ------
    InputError
        If a phase is unknown, the corpus is absent, or the state in `work` is of another kind of run.
    """
    begin = time.monotonic()
    for name in chosen:
        if name not in PHASES:
            raise UnknownName("phase", name, PHASES)
    if not (setting.corpus / "corpus.parquet").is_file():
        raise InputError(
            f"{setting.corpus}: no corpus.parquet; make it with `python -m moesim.moe.corpus` and bring it"
        )
    setting.work.mkdir(parents=True, exist_ok=True)
    setting.out.mkdir(parents=True, exist_ok=True)
    state = _State(setting)
    for name in PHASES:
        if name not in chosen or state.done(name):
            continue
        absent = [need for need in PHASES[name].needs if not state.done(need)]
        if absent:
            state.set(name, "skipped", 0.0, f"needs {', '.join(absent)}")
            continue
        left = 60 * minutes - (time.monotonic() - begin)
        later = sum(PHASES[other].share for other in chosen if not state.done(other) and other != name)
        budget = left * PHASES[name].share / (PHASES[name].share + later)
        _phase(setting, state, name, budget, min(left, max(_OVERRUN * budget, _LEAST_S)) if later else left)
        # after each phase, so that a stop costs one phase and not all
        for left_out in bring(setting, state.phases):
            _say(f"{left_out}: left out of what is brought back, which would be too large")
    sys.stdout.write(table(state.phases, setting))
    return all(state.done(name) for name in chosen)


def _phase(setting: Setting, state: _State, name: str, budget: float, left: float) -> None:
    start = time.monotonic()
    _say(f"{name}: {budget:.0f} s, at most {left:.0f} s")
    state.set(name, "running", 0.0, "")
    problem = ""
    for command in PHASES[name].commands(setting, budget / 60):
        # a phase may overrun, as its own budget is only a plan
        limit = max(left - (time.monotonic() - start) - _GRACE_S, 1.0)
        problem = _attempt(command, setting, name, limit)
        if problem:
            break
    state.set(name, "failed" if problem else "done", time.monotonic() - start, problem)
    _say(f"{name}: {problem or 'done'} after {time.monotonic() - start:.0f} s")


def _attempt(command: Command, setting: Setting, name: str, limit: float) -> str:
    """Run a command, or what stands in for it where it refuses; returns what went wrong."""
    stop = time.monotonic() + limit
    problem = ""
    for arguments in (command.arguments, *command.standins):
        code = _run(arguments, command, setting.work / f"{name}.log", max(stop - time.monotonic(), 1.0))
        if code == 0:
            return ""
        problem = "out of time" if code is None else f"exit code {code}: {_last(setting.work / f'{name}.log')}"
        if code != _REFUSED:
            break
    return problem


def _run(arguments: tuple[str, ...], command: Command, log: Path, limit: float) -> int | None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "true", **command.environment}
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ python {' '.join(arguments)}\n")
        file.flush()
        # a group of its own, so that a stop takes the workers along, which would hold the device
        with subprocess.Popen(
            python(arguments), stdout=file, stderr=subprocess.STDOUT, env=environment, process_group=0
        ) as process:
            try:
                return process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                file.write(f"stopped after {limit:.0f} s\n")
                return None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _last(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][-200:] if lines else ""


def _say(line: str) -> None:
    sys.stderr.write(f"gpu_run: {line}\n")
    sys.stderr.flush()


class _State:
    """What is done, on disk."""

    def __init__(self, setting: Setting) -> None:
        self._path = setting.work / "state.json"
        self._kind = {"dry": setting.dry, "device": setting.device, "commit": commit()}
        self.phases: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            held = json.loads(self._path.read_text("utf-8"))
            if held["kind"] != self._kind:
                raise InputError(
                    f"{self._path}: of another run ({held['kind']}, now {self._kind}); choose another --work folder"
                )
            self.phases = held["phases"]

    def done(self, name: str) -> bool:
        """Whether a phase is done."""
        return self.phases.get(name, {}).get("status") == "done"

    def set(self, name: str, status: str, seconds: float, note: str) -> None:
        """Write down how a phase stands."""
        before = self.phases.get(name, {}).get("seconds", 0.0)
        self.phases[name] = {"status": status, "seconds": round(before + seconds, 1), "note": note}
        write_text(self._path, json.dumps({"kind": self._kind, "phases": self.phases}, indent=1) + "\n")
