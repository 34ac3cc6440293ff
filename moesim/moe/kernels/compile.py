"""`python -m moesim.moe.kernels.compile`: compile every tile for a GPU that need not be there, and what each needs.

Registers, spills and shared memory of a kernel are facts of the compiler; they say which tiles cannot be fast, or
cannot run at all, before any GPU is at hand.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moesim.moe.kernels.grouping import SMALLEST
from moesim.moe.kernels.jit import fp8, gemm, group, move, topk
from moesim.moe.kernels.tiles import FEW, FP8_TILES, GRADIENT, MANY, Tile

SHARED_BYTES: Final = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}
"""Shared memory that one program can have, by compute capability (CUDA programming guide)."""
_FEW_POINTERS: Final = {"offsets", "expert_of", "row_of", "totals", "source", "order", "place", "rows_end", "ends"}
_FLOATS: Final = {"w_scale", "x_scale", "scales", "bias", "scale", "grad_weights"}


@dataclass(frozen=True)
class Built:
    """What the compiler says of one kernel: registers a thread, bytes spilt a thread, shared bytes, its products."""

    kernel: str
    tile: str
    registers: int
    spilt_bytes: int
    shared_bytes: int
    products: str
    fits: bool


@dataclass(frozen=True)
class Job:
    """One kernel with its constants."""

    name: str
    function: str
    constants: dict[str, Any]
    tile: Tile
    element: str = "bf16"


def jobs() -> Iterator[Job]:
    """Yield every kernel with every tile that the tuning may try, in bfloat16 (and fp8 where that is the kernel)."""
    flags: dict[str, Any] = {"GATHER": False, "TOP_K": 1, "WIDEN": False, "EVEN_D": True, "EVEN_N": True}
    for tile in (*FEW, *MANY):
        level: dict[str, Any] = {"LEVEL": (tile.rows // SMALLEST).bit_length() - 1}
        shape = tile.meta() | level
        if tile.rows * tile.columns <= 128 * 128:
            swiglu: dict[str, Any] = {"SWIGLU": True, "DEEP": False}
            yield Job("gate-up", "gemm.grouped", flags | swiglu | {"KEEP": False} | shape, tile)
            yield Job("gate-up, kept", "gemm.grouped", flags | swiglu | {"KEEP": True} | shape, tile)
        plain: dict[str, Any] = {"SWIGLU": False, "KEEP": False}
        yield Job("down", "gemm.grouped", flags | plain | {"DEEP": False} | shape, tile)
        yield Job("to inputs", "gemm.grouped", flags | plain | {"DEEP": True} | shape, tile)
    for tile in GRADIENT:
        shape = {name: tile.meta()[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_D", "GROUP")}
        yield Job("to weights", "gemm.weight_gradient", {"WIDEN": False} | shape, tile)
    for tile in FP8_TILES:
        meta: dict[str, Any] = {name: value for name, value in tile.meta().items() if name != "BOX"}
        meta = meta | {"LEVEL": (tile.rows // SMALLEST).bit_length() - 1, "EVEN_D": True, "EVEN_N": True}
        for gated in (True, False):
            yield Job(
                "gate-up fp8" if gated else "down fp8", "fp8.grouped_fp8", meta | {"SWIGLU": gated}, tile, "fp8e4nv"
            )
    one = Tile(0, 0, 0)
    yield Job("histogram", "group.histogram", {"PICKS": 128, "EXPERTS": 256, "E": 256}, one)
    yield Job("scatter", "group.scatter", {"PICKS": 128, "E": 256}, one)
    yield Job("block map", "group.block_map",
              {"E": 256, "EXPERTS": 256, "SMALLEST": SMALLEST, "HEIGHTS": 4, "BLOCKS": 32}, one)  # fmt: skip
    yield Job("permute", "move.permute", {"TOP_K": 8, "BLOCK": 1024}, one)
    yield Job("unpermute", "move.unpermute", {"TOP_K": 8, "WEIGHTED": True, "BLOCK": 1024}, one)
    yield Job("unpermute, backward", "move.unpermute_backward", {"TOP_K": 8, "BLOCK": 1024}, one)
    yield Job("SwiGLU, backward", "move.swiglu_backward", {"BLOCK": 1024}, one)
    yield Job("quantise", "move.quantise", {"LIMIT": 448.0, "BLOCK": 128}, one)
    gate = {"SIGMOID": True, "NORMALISE": True, "TOP_K": 8, "EXPERTS": 256}
    yield Job("top-k", "topk.pick", gate | {"BIASED": True, "GROUPS": 8, "LIMIT": 4, "SLOTS": 8}, Tile(0, 0, 0, 1))
    yield Job("top-k, backward", "topk.pick_backward", gate, Tile(0, 0, 0, 1))


def build(job: Job, capability: int) -> Built:
    """Compile one kernel and read what it needs."""
    module, name = job.function.split(".")
    function = getattr({"gemm": gemm, "fp8": fp8, "group": group, "move": move, "topk": topk}[module], name)
    # the axis that a matrix is contiguous along has stride 1, which Triton makes a constant
    constants = dict(job.constants)
    if job.function == "gemm.grouped":
        constants["stride_d" if constants["DEEP"] else "stride_n"] = 1
    signature, aligned = {}, {}
    for number, argument in enumerate(function.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
            continue
        signature[argument] = _type_of(argument, job)
        if argument not in {"P", "E", "bound", "ROWS", "SPREAD", "picks", "chunks", "scale", "stride"}:
            aligned[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": job.tile.warps, "num_stages": job.tile.stages}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilt = _resources(built.asm["cubin"])
    products = next((kind for kind in ("wgmma", "mma.sync") if kind in built.asm["ptx"]), "-")
    shared = int(built.metadata.shared)
    label = ", ".join(f"{key} {value}" for key, value in asdict(job.tile).items()) if job.tile.rows else "-"
    return Built(job.name, label, registers, spilt, shared, products, shared <= SHARED_BYTES.get(capability, 1 << 30))


def _type_of(argument: str, job: Job) -> str:
    module = job.function.split(".")[0]
    if module == "topk":
        kinds = {"logits": "*fp32", "bias": "*fp32", "experts": "*i64", "weights": "*fp32", "grad": "*fp32"}
        return kinds.get(argument, "*fp32" if argument == "out" else "fp32" if argument == "scale" else "i32")
    if module == "group":
        return "i32" if argument in {"picks", "chunks", "bound"} else "*i64" if argument == "experts" else "*i32"
    if argument in _FEW_POINTERS:
        return "*i32"
    if argument in _FLOATS or (argument == "weights" and module == "move"):
        return "*fp32"
    if argument == "out":
        return "*fp8e4nv" if job.name == "quantise" else "*bf16"
    if argument in {"x", "w", "before", "g", "y", "grad", "grad_y", "grad_before", "act"}:
        return f"*{job.element}"
    return "i32"


def _resources(cubin: bytes) -> tuple[int, int]:
    """Return registers and bytes of local memory a thread, as Triton's own cuobjdump reads them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    registers, stack = re.search(r"REG:(\d+)", done.stdout), re.search(r"STACK:(\d+)", done.stdout)
    return int(registers[1]) if registers else -1, int(stack[1]) if stack else -1


def _build(pair: tuple[Job, int]) -> Built:
    return build(*pair)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if a kernel does not fit the device."""
    parser = argparse.ArgumentParser(prog="python -m moesim.moe.kernels.compile", description=__doc__)
    parser.add_argument("--capability", type=int, default=90, help="90 is Hopper (default), 80 A100, 100 B200")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", help="kernels whose name contains this")
    parser.add_argument("--first", action="store_true", help="only the first tile of each kernel")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    wanted = [(job, options.capability) for job in jobs() if options.only is None or options.only in job.name]
    if options.first:
        wanted = list({job.name: (job, capability) for job, capability in reversed(wanted)}.values())
    with ProcessPoolExecutor(options.workers) as pool:
        rows = list(pool.map(_build, wanted))
    if options.json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    else:
        for row in rows:
            flag = "" if row.fits else "  DOES NOT FIT"
            sys.stdout.write(
                f"{row.kernel:20} {row.registers:4} registers {row.spilt_bytes:5} B stack "
                f"{row.shared_bytes:7} B shared {row.products:8} {row.tile}{flag}\n"
            )
    return 0 if all(row.fits for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
