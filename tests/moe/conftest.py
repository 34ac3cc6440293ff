from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from moesim.moe.config import MoeConfig
    from moesim.moe.model import MoeModel

if find_spec("torch") and find_spec("triton"):
    import torch

    if not torch.cuda.is_available():
        # device code runs on the CPU; read by Triton when a kernel is defined, so it must be set before that
        os.environ.setdefault("TRITON_INTERPRET", "1")

NEEDS_NO_TORCH = {"test_corpus.py"}


def _missing() -> str | None:
    for name in ("torch", "safetensors", "tokenizers"):
        try:
            importlib.import_module(name)
        except ImportError:
            return name
    return None


class Skipped(pytest.Module):
    """A test module that cannot be imported here; says why."""

    def collect(self):
        pytest.skip(f"{_missing()} is not installed: pip install 'moesim[gpu]'", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if module_path.name not in NEEDS_NO_TORCH and _missing() is not None:
        return Skipped.from_parent(parent, path=module_path)
    return None


@pytest.fixture(autouse=True)
def one_thread():
    if _missing() is None:
        import torch

        torch.set_num_threads(1)


@pytest.fixture
def config() -> MoeConfig:
    from moesim.moe.config import MoeConfig

    return MoeConfig(
        vocabulary=300, layers=2, hidden=16, heads=2, experts=8, top_k=3, shared_experts=1, intermediate=8, context=32
    )


@pytest.fixture
def model(config: MoeConfig) -> MoeModel:
    from moesim.moe.model import MoeModel

    return MoeModel(config).initialise(seed=1).eval()
