"""`python -m moesim.moe.kernels.warm`: compile every tile beforehand, on all cores, into Triton's cache on disk.

The tuner compiles its candidates one after another, which costs minutes of a GPU that waits. Each worker here runs
tiny problems, each with one tile; what they compile is what larger problems of the same kind use.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final, NamedTuple

import torch

from moesim.moe.kernels import fp8
from moesim.moe.kernels.gemm import grouped, weight_gradient
from moesim.moe.kernels.grouping import group
from moesim.moe.kernels.move import permute, quantise_rows
from moesim.moe.kernels.tiles import EXACT, FEW, FP8_TILES, GRADIENT, MANY, Tile

_KINDS: Final = {
    # inference with rows copied and taken where they lie, training, and the backward pass
    "gate-up": {"swiglu": True},
    "gate-up, gathered": {"swiglu": True, "gather": True},
    "gate-up, kept": {"swiglu": True, "keep": True},
    "down": {},
    "to inputs": {"deep": True},
}
_WIDE: Final = 128 * 128


class Job(NamedTuple):
    """One kernel with one tile."""

    kind: str
    dtype: str
    tile: Tile


def jobs(*, with_fp8: bool, with_boxes: bool) -> Iterator[Job]:
    """Yield what to compile."""
    for kind in _KINDS:
        for dtype, tiles in (("bfloat16", (*FEW, *MANY)), ("float32", EXACT)):
            for tile in tiles:
                wide = "gate" in kind and tile.rows * tile.columns > _WIDE
                boxed = tile.box and (not with_boxes or "gathered" in kind)
                if not wide and not boxed:
                    yield Job(kind, dtype, tile)
    for tile in GRADIENT:
        yield Job("to weights", "float32" if tile.depth <= 32 else "bfloat16", tile)
    if with_fp8:
        for tile in FP8_TILES:
            yield Job("fp8", "bfloat16", tile)


def build(job: Job, device: str = "cuda") -> float:
    """Compile one job by running a tiny problem; returns the seconds it took."""
    begin = time.perf_counter()
    dtype = getattr(torch, job.dtype)
    experts, hidden = 2, 512
    x = torch.randn(32, hidden, device=device).to(dtype)
    grouping = group(torch.arange(32, device=device)[:, None] % experts, experts)
    w = (torch.randn(experts, hidden, hidden, device=device) / hidden**0.5).to(dtype)
    if job.kind == "fp8":
        packed = fp8.to_fp8(torch.cat([w, w], -1).float(), w.float())
        rows = quantise_rows(permute(x, grouping), grouping.offsets[-1:])
        for weights, scales in ((packed.gate_up, packed.gate_up_scale), (packed.down, packed.down_scale)):
            fp8.grouped_fp8(*rows, weights, scales, grouping, dtype=dtype, tile=job.tile)
    elif job.kind == "to weights":
        weight_gradient(x, x, grouping, tile=job.tile)
    else:
        options = _KINDS[job.kind]
        weights = torch.cat([w, w], -1) if options.get("swiglu") else w
        grouped(x, weights, grouping, tile=job.tile, **options)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _try(pair: tuple[Job, str]) -> tuple[Job, float, str]:
    try:
        return pair[0], build(*pair), ""
    except Exception as error:
        # a tile that a device cannot run is left out by the tuner too; here it is told
        return pair[0], 0.0, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, as tiles that do not compile are left out when kernels are tuned."""
    parser = argparse.ArgumentParser(prog="python -m moesim.moe.kernels.warm", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 2) - 2)))
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
    wanted = [(job, options.device) for job in jobs(with_fp8=fp8.supported(device), with_boxes=hopper)]
    begin = time.perf_counter()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_try, wanted))
    for job, _, problem in found:
        if problem:
            sys.stdout.write(f"{job.kind} {job.dtype} {job.tile}: {problem}\n")
    good = sum(not problem for _, _, problem in found)
    spent = sum(seconds for _, seconds, _ in found)
    sys.stdout.write(
        f"{good} of {len(found)} compiled in {time.perf_counter() - begin:.0f} s ({spent:.0f} s of work)\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
