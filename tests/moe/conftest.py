from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the bundled model needs the extra gpu: pip install 'moesim[gpu]'")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

import torch

from moesim.moe.config import MoeConfig
from moesim.moe.model import MoeModel


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def config() -> MoeConfig:
    return MoeConfig(
        vocabulary=300, layers=2, hidden=16, heads=2, experts=8, top_k=3, shared_experts=1, intermediate=8, context=32
    )


@pytest.fixture
def model(config: MoeConfig) -> MoeModel:
    return MoeModel(config).initialise(seed=1).eval()
