"""The phases of a run: each a few commands that anybody could type, with a share of the time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from moesim.base.files import write_text
from moesim.moe.config import MoeConfig

LARGER: Final = MoeConfig(hidden=256, heads=8, layers=8, experts=64, top_k=6, intermediate=48)
"""The larger bundled model: 22.5 million weights, 45 MB in bfloat16."""
TINY: Final = MoeConfig(vocabulary=300, layers=2, hidden=32, heads=2, experts=8, top_k=2, intermediate=16, context=64)


@dataclass(frozen=True)
class Setting:
    """Where a run reads and writes, and on what it runs.

    Parameters
    ----------
    corpus
        Folder of the packed corpus.
    work, out
        Folders of the run's state and of what is brought back.
    dry
        Whether this only tries the phases out, on a CPU with a tiny model.
    """

    corpus: Path
    work: Path
    out: Path
    device: str = "cuda"
    dry: bool = False


@dataclass(frozen=True)
class Command:
    """One command of a phase.

    Parameters
    ----------
    arguments
        After the Python interpreter.
    environment
        What is set for it.
    standins
        What to run instead, in turn, where it refuses (exit code 1): the corpus may hold fewer prompts.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    standins: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Phase:
    """A phase: its share of the time, what it needs, and its commands, given the minutes that it has."""

    share: float
    needs: tuple[str, ...]
    commands: Callable[[Setting, float], list[Command]]


def _facts(setting: Setting, minutes: float) -> list[Command]:
    return [
        Command(
            ("-m", "moesim.moe.gpu_run.facts", "--device", setting.device, "--out", str(setting.work / "facts.json"))
        )
    ]


def _kernels(setting: Setting, minutes: float) -> list[Command]:
    check = "-m", "moesim.moe.kernels.check", "--device", setting.device
    if setting.dry:
        return [Command(check, {"TRITON_INTERPRET": "1"})]
    return [Command(("-m", "moesim.moe.kernels.warm", "--device", setting.device)), Command(check)]


def _train(setting: Setting, minutes: float) -> list[Command]:
    import json
    from dataclasses import asdict

    model = TINY if setting.dry else LARGER
    training = {"tokens": 1024, "rows": 8, "warmup": 2} if setting.dry else {
        "tokens": 120_000_000, "rows": 64, "learning_rate": 2e-3, "warmup": 100, "save_every": 200,
    }  # fmt: skip
    config = setting.work / "train.json"
    write_text(config, json.dumps({"model": asdict(model), "training": training}, indent=1))
    # the end of a run evaluates and writes, which takes time too
    limit = ("--minutes", f"{0.85 * minutes:.3f}") if not setting.dry else ()
    return [Command((
        "-m", "moesim", "train", "--corpus", str(setting.corpus), "-o", str(setting.work / "model"),
        "--config", str(config), "--device", setting.device, *limit,
    ))]  # fmt: skip


def _capture(setting: Setting, minutes: float) -> list[Command]:
    lengths = ("8,24", "4,12") if setting.dry else ("48,400", "48,240")
    counts = (16,) if setting.dry else (1200, 1120, 1040, 960, 880, 800, 720, 640, 520)
    found = []
    for number, part in enumerate(("fit", "eval")):
        base = (
            "-m", "moesim", "capture", "bundled", "--corpus", str(setting.corpus), "--part", part,
            "--model", str(setting.work / "model"), "--device", setting.device, "--seed", str(number),
            "--prompt-tokens", lengths[0], "--new-tokens", lengths[1],
            "-o", str(setting.work / f"bundled-moe-{part}.parquet"),
        )  # fmt: skip
        first, *others = ((*base, "--requests", str(count)) for count in counts)
        found.append(Command(first, standins=tuple(others)))
    return found


def _profile(setting: Setting, minutes: float) -> list[Command]:
    extra = ("--model", "bundled", "--tokens", "1,4", "--active", "1,2", "--seconds", "0.001") if setting.dry else ()
    return [Command((
        "-m", "moesim", "profile", "-o", str(setting.work / "profile"), "--device", setting.device,
        "--minutes", f"{0.9 * minutes:.3f}", *extra,
    ))]  # fmt: skip


def _tests(setting: Setting, minutes: float) -> list[Command]:
    chosen = ("tests/moe/test_gating.py", "-k", "ties") if setting.dry else (
        "tests/moe/test_kernels.py", "tests/moe/test_gating.py", "tests/moe/test_experts.py", "tests/moe/test_model.py",
    )  # fmt: skip
    return [Command((
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default",
        f"--junitxml={setting.work / 'tests.xml'}", *chosen,
    ))]  # fmt: skip


def _card(setting: Setting, minutes: float) -> list[Command]:
    return [Command((
        "-m", "moesim.moe.gpu_run.card", "--model", str(setting.work / "model"), "--device", setting.device,
        "--out", str(setting.work / "card.json"), "--runs", "3" if setting.dry else "15",
    ))]  # fmt: skip


PHASES: Final[Mapping[str, Phase]] = MappingProxyType({
    "facts": Phase(0.02, (), _facts),
    "kernels": Phase(0.10, ("facts",), _kernels),
    "train": Phase(0.36, ("facts",), _train),
    "capture": Phase(0.16, ("train",), _capture),
    "profile": Phase(0.26, ("facts",), _profile),
    "tests": Phase(0.08, ("facts",), _tests),
    "card": Phase(0.02, ("train",), _card),
})  # fmt: skip
"""Phases by name, in order; what a phase leaves over goes to the later ones."""


def python(arguments: tuple[str, ...]) -> list[str]:
    """Return the command line that runs Python with these arguments."""
    return [sys.executable, *arguments]
