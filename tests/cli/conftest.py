"""A command line in this process, and small inputs for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moesim.cli import main
from moesim.spec import ModelSpec
from moesim.trace.synthetic import router

SPEC = ModelSpec(
    name="little", layer_ids=(1, 2), num_hidden_layers=3, experts=12, top_k=2, hidden=512, intermediate=256,
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, printed.out, printed.err)

    return call


@pytest.fixture(scope="session")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "little.parquet"
    router(SPEC, 6000, seed=1, request_tokens=40, decode=0.5).write(path)
    return path


@pytest.fixture(scope="session")
def setting() -> list[str]:
    """Six ranks of a node, small steps: seconds for a whole comparison."""
    return ["--topology", "h100-1x8", "--ranks", "6", "--tokens-per-rank", "64", "--dims", "deepseek-v3"]
