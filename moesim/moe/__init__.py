"""The bundled MoE language model: routers, experts, training, weights, and how the bundled traces were made.

Everything here needs torch, from the extra ``gpu``; nothing outside of this room and `moesim.capture` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moesim.base.errors import MissingExtra

if TYPE_CHECKING:
    from moesim.moe.config import MoeConfig as MoeConfig
    from moesim.moe.traces import capture_bundled as capture_bundled
    from moesim.moe.weights import Bundle as Bundle
    from moesim.moe.weights import load_model as load_model

_HOME = {"Bundle": "weights", "MoeConfig": "config", "capture_bundled": "traces", "load_model": "weights"}

__all__ = ["Bundle", "MoeConfig", "capture_bundled", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'moesim.moe' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"moesim.moe.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name in {"torch", "safetensors", "tokenizers"}:
            raise MissingExtra(error.name, "gpu") from None
        raise
