"""`python -m moesim.moe.kernels.check`: the kernels against PyTorch in float64 on the device at hand, fresh numbers.

Quick, and needs no test tools: the first thing to run on a new device or with a new version of Triton.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from moesim.moe.gating import pick_torch
from moesim.moe.kernels import fp8, interpreted
from moesim.moe.kernels.grouping import group
from moesim.moe.kernels.mlp import experts
from moesim.moe.kernels.topk import pick

LIMITS: Final = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Distance from float64, relative to the norm."""
FP8_LIMIT: Final = 0.15
_SMALL: Final = (("one token", 1, 8, 2, 64, 32), ("odd sizes", 20, 5, 3, 72, 40))
_LARGE: Final = (
    ("top-1", 37, 8, 1, 64, 48), ("ragged", 300, 16, 4, 128, 96), ("some experts empty", 9, 64, 2, 128, 64),
    ("decode", 64, 32, 4, 1024, 512), ("prefill", 4096, 16, 4, 1024, 768),
)  # fmt: skip

_ROUTERS: Final[dict[str, dict[str, Any]]] = {
    "softmax": {}, "sigmoid, groups": {"sigmoid": True, "groups": 8, "limit": 4},
}  # fmt: skip


def check(device: str, *, seed: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield a row a case: name, dtype, the largest relative error of output and gradients, and its limit."""
    generator = torch.Generator(device)
    seed = generator.seed() if seed is None else seed
    generator.manual_seed(seed)
    # the interpreter is slow, and cuts float32 to bfloat16 where devices round
    cases = _SMALL[:1] if interpreted() else (*_SMALL, *_LARGE)
    slack = 2.0 if interpreted() else 1.0
    for name, *sizes in cases:
        for dtype, limit in LIMITS.items():
            if dtype == torch.float32 and name == "prefill":
                continue
            worst = _experts(device, generator, dtype, *sizes)
            yield {
                "case": f"experts, {name}",
                "dtype": str(dtype)[6:],
                "error": worst,
                "limit": slack * limit,
                "seed": seed,
            }
    if interpreted() or fp8.supported(torch.device(device)):
        yield {
            "case": "experts in fp8", "dtype": "float8_e4m3", "error": _fp8(device, generator), "limit": FP8_LIMIT,
            "seed": seed,
        }  # fmt: skip
    tokens = 10 if interpreted() else 500
    for name, options in _ROUTERS.items():
        error = _router(device, generator, tokens, options)
        yield {"case": f"router, {name}", "dtype": "float32", "error": error, "limit": 1e-5, "seed": seed}


def _experts(
    device: str, generator: torch.Generator, dtype: torch.dtype, tokens: int, count: int, top_k: int, hidden: int,
    width: int,
) -> float:  # fmt: skip
    def draw(*shape: int, fan: float) -> Tensor:
        made: Tensor = torch.randn(shape, generator=generator, device=device) / fan**0.5
        return made.to(dtype)

    x, gate_up, down = (
        draw(tokens, hidden, fan=1),
        draw(count, hidden, 2 * width, fan=hidden),
        draw(count, width, hidden, fan=width),
    )
    chosen = torch.rand(tokens, count, generator=generator, device=device).argsort(-1)[:, :top_k]
    weights = torch.rand(tokens, top_k, generator=generator, device=device)
    slope = torch.randn(tokens, hidden, generator=generator, device=device)
    found, wanted = (
        _run(function, chosen, slope, [t.to(kind or t.dtype) for t in (x, weights, gate_up, down)])
        for function, kind in ((experts, None), (_plain, torch.float64))
    )
    # the gradient of a gate weight is a dot product that may cancel: against the norm of what it is made of
    least = (0.0, 0.0, float(slope.norm()), 0.0, 0.0)
    pairs = zip(found, wanted, least, strict=True)
    return max(float((a.double() - b).norm() / max(float(b.norm()), low)) for a, b, low in pairs)


def _run(function: Any, chosen: Tensor, slope: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(leaves[0], chosen, *leaves[1:])
    (out * slope.to(out.dtype)).sum().backward()
    return [out.detach(), *(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves)]


def _plain(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for expert in range(len(down)):
        token, k = torch.nonzero(chosen == expert, as_tuple=True)
        gate, up = (x[token] @ gate_up[expert]).chunk(2, -1)
        y = (torch.nn.functional.silu(gate) * up) @ down[expert]
        out = out.index_add(0, token, weights[token, k, None] * y)
    return out


def _fp8(device: str, generator: torch.Generator) -> float:
    tokens = 5 if interpreted() else 500
    x = torch.randn(tokens, 256, generator=generator, device=device)
    gate_up = torch.randn(6, 256, 256, generator=generator, device=device) / 16
    down = torch.randn(6, 128, 256, generator=generator, device=device) / 128**0.5
    chosen = torch.rand(tokens, 6, generator=generator, device=device).argsort(-1)[:, :2]
    weights = torch.rand(tokens, 2, generator=generator, device=device)
    found = fp8.experts_fp8(x.bfloat16(), group(chosen, 6), weights, fp8.to_fp8(gate_up, down))
    wanted = _plain(x.double(), chosen, weights.double(), gate_up.double(), down.double())
    return float((found.double() - wanted).norm() / wanted.norm())


def _router(device: str, generator: torch.Generator, tokens: int, options: dict[str, Any]) -> float:
    logits = torch.randn(tokens, 64, generator=generator, device=device)
    chosen, weights = pick(logits, 6, **options)
    expected, wide = pick_torch(logits.double(), 6, **options)
    return float((weights.double() - wide).abs().max()) if torch.equal(chosen, expected) else float("inf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if a kernel is wrong."""
    parser = argparse.ArgumentParser(prog="python -m moesim.moe.kernels.check", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu under TRITON_INTERPRET=1 (default %(default)s)")
    parser.add_argument("--seed", type=int, help="default: a fresh one, printed")
    options = parser.parse_args(arguments)
    good = True
    for row in check(options.device, seed=options.seed):
        row["ok"] = row["error"] <= row["limit"]
        good &= row["ok"]
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
