"""Figures for the model card: speed of a forward pass, the experts' share of it, and what the capture hook adds."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from moesim.base.files import write_text
from moesim.capture import capture
from moesim.moe.experts import Experts
from moesim.moe.model import MoeModel
from moesim.moe.weights import load_model


def figures(model: MoeModel, device: str, *, rows: int = 32, runs: int = 15) -> dict[str, float]:
    """Return `tokens_per_s` of a forward pass, `experts_share` of its time, and `capture_overhead`.

    The three are medians of `runs`; with the hook and without it take turns.
    """
    config = model.config
    tokens = torch.randint(0, config.vocabulary, (rows, config.context), device=device)
    wait: Callable[[], Any] = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)

    @torch.inference_mode()
    def forward() -> float:
        wait()
        start = time.perf_counter()
        model(tokens)
        wait()
        return time.perf_counter() - start

    for _ in range(3):
        forward()
    off, on, shares = [], [], []
    for _ in range(runs):
        off.append(forward())
        with capture(model) as recorder:
            start = time.perf_counter()
            with torch.inference_mode():
                model(tokens)
            recorder.take()
            wait()
            on.append(time.perf_counter() - start)
        shares.append(_in_experts(model, forward, wait))
    return {
        "tokens": float(tokens.numel()),
        "tokens_per_s": tokens.numel() / statistics.median(off),
        "experts_share": statistics.median(shares),
        "capture_overhead": statistics.median(on) / statistics.median(off) - 1,
    }


def _in_experts(model: MoeModel, forward: Callable[[], float], wait: Callable[[], Any]) -> float:
    """Return the share of a forward pass in the expert layers, both with the device waited for around them."""
    spent, began = [0.0], [0.0]

    def enter(*_: Any) -> None:
        wait()
        began[0] = time.perf_counter()

    def leave(*_: Any) -> None:
        wait()
        spent[0] += time.perf_counter() - began[0]

    hooks = []
    for module in model.modules():
        if isinstance(module, Experts):
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        return spent[0] / whole if (whole := forward()) else 0.0
    finally:
        for hook in hooks:
            hook.remove()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m moesim.moe.gpu_run.card", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args(arguments)
    bundle = load_model(options.model, device=options.device)
    parameters = sum(parameter.numel() for parameter in bundle.model.parameters())
    found = {"parameters": parameters, "weights_digest": bundle.digest} | figures(
        bundle.model, options.device, runs=options.runs
    )
    write_text(options.out, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
