"""Every constant of the cost models with where it comes from; ``docs/physics.md`` explains how each is used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final


@dataclass(frozen=True)
class Constant:
    """A number, whether it was measured, is from a datasheet or is assumed, and its source."""

    value: float
    tag: str
    source: str

    def __str__(self) -> str:
        return f"{self.tag}: {self.value:g}, {self.source}"


_LL_ROWS: Final = "aiconfigurator-core 0.12.0 wideep_deepep_ll 0.5.12, H100, EP8"
_NORMAL_ROWS: Final = "aiconfigurator-core 0.12.0 wideep_deepep_normal 0.5.12, H100, EP8, hidden 7168, top-8"

FLOOR_PATH_S: Final = Constant(1e-6, "assumed", "trip from GPU over NVSwitch to GPU inside every floor below")

# -- floors: what one phase costs before the first byte; launch, flags, barriers -----------------------------------
LL_DISPATCH_FLOOR_S: Final = Constant(9.7e-6, "measured", f"latency at 1 token less that of the experts, {_LL_ROWS}")
LL_COMBINE_FLOOR_S: Final = Constant(10.7e-6, "measured", f"latency at 1 token less that of the experts, {_LL_ROWS}")
LL_EXPERT_S: Final = Constant(
    13e-9, "measured", f"count or flag of one more expert: 9.5 us with 8 experts, 11 with 128, 17 with 512, {_LL_ROWS}"
)
LL_DISPATCH_HIDDEN_S: Final = Constant(
    4e-6, "measured", f"part of the floor in which bytes move already: 64 to 512 tokens, {_LL_ROWS}"
)
LL_COMBINE_HIDDEN_S: Final = Constant(
    7e-6, "measured", f"part of the floor in which bytes move already: 64 to 256 tokens, {_LL_ROWS}"
)
LL_TOKEN_S: Final = Constant(
    2.4e-6, "measured", f"one SM casts and sends a token: 1024 tokens on 8 SMs in 321 us, on 16 in 154, {_LL_ROWS}"
)
LL_SMS: Final = Constant(
    132, "datasheet", "SMs of H100: DeepEP low latency spreads experts over them; few experts, few SMs"
)
BLACKWELL_FLOORS: Final = Constant(
    1.37, "measured", "floors against Hopper's: NCCL all-to-all of 512 B, 10.1 us on 8 B200, 7.4 on 8 H100"
)
NORMAL_DISPATCH_FLOOR_S: Final = Constant(26.1e-6, "measured", f"latency at 1 token (all SM counts), {_NORMAL_ROWS}")
NORMAL_COMBINE_ROW_S: Final = Constant(
    21.9e-6,
    "measured",
    f"what combine's first token of hidden 7168 takes beyond the dispatch floor, 48.0 us (all SM counts), "
    f"{_NORMAL_ROWS}; assumed: in proportion to the row",
)
COLLECTIVE_FLOOR_S: Final = Constant(
    7.4e-6, "measured", "NCCL 8-GPU all-to-all of 512 B on H100, aiconfigurator-core 0.12.0 nccl_perf"
)
_NCCL_ROWS: Final = "NCCL 2.23-2.29 all-to-all, 2 to 8 H100, aiconfigurator-core 0.12.0 nccl_perf"
COLLECTIVE_FLOORS_S: Final[dict[str, float]] = {
    "A100": 15.8e-6, "H100": 7.4e-6, "H200": 8.3e-6,
    "B200": 10.1e-6, "B300": 10.1e-6, "GB200": 10.1e-6, "GB300": 10.1e-6,
}  # fmt: skip
"""NCCL all-to-all of 512 B on 8 GPUs by device (GB200 and B300 as B200); measured, aiconfigurator-core nccl_perf."""
COLLECTIVE_PEER_S: Final = Constant(
    0.18e-6, "measured", f"part of the floor that each peer adds: 6.3 us on 2 GPUs, 6.9 on 4, 7.5 on 8, {_NCCL_ROWS}"
)
COLLECTIVE_STEP_S: Final = Constant(
    5.5e-6, "measured", f"what messages beyond the latency protocol cost more: 13 us at 1 MB, no load 7.5, {_NCCL_ROWS}"
)
COLLECTIVE_STEP_BYTES: Final = Constant(
    0.15e6, "measured", f"bytes of a rank at which that is reached (64 KB to 256 KB), {_NCCL_ROWS}"
)
COLLECTIVE_RAMP: Final = Constant(
    0.27,
    "measured",
    f"filling and draining chunk buffers, in parts of the transfer: 20 us of 74 at 24 MB, {_NCCL_ROWS}",
)
COLLECTIVE_RAMP_BYTES: Final = Constant(
    24e6, "measured", f"bytes of a rank from which that does not grow: between 15 and 29 MB, {_NCCL_ROWS}"
)
NVLINK_DISPATCH_FLOOR_S: Final = Constant(
    18.5e-6, "measured", "TensorRT-LLM blog 18, one-sided all-to-all, GB200 EP8, 1 to 32 tokens: 17.6-18.9 us"
)
ONE_SIDED_READ_S: Final = Constant(
    1.5e-6,
    "measured",
    "combine reads the results of a token one rank after another: floors of combine less dispatch over 8 ranks, "
    "12.5 us at EP8, 11.7 at EP32, TensorRT-LLM blog 18, GB200",
)
ONE_SIDED_DOUBLING_S: Final = Constant(
    0.42e-6,
    "measured",
    "barrier of twice as many ranks: dispatch floors of EP8 and EP32 (18.5 and 19.4 us), TensorRT-LLM blog 18, GB200",
)
NVLINK_DISPATCH_HIDDEN_S: Final = Constant(
    6.2e-6, "measured", "floor less the intercept of 256 to 2048 tokens (12.3 us), TensorRT-LLM blog 18, GB200 EP8"
)
NVLINK_COMBINE_HIDDEN_S: Final = Constant(
    0.86,
    "measured",
    "part of those reads that later tokens hide: combine's floor less its intercept of 256 to 1024 tokens (14.5 us) "
    "and less what dispatch hides, TensorRT-LLM blog 18, GB200 EP8",
)

# -- rates beside the links ----------------------------------------------------------------------------------------
NIC_MESSAGE_S: Final = Constant(1 / 330e6, "datasheet", "ConnectX-7: 330 million messages a second")
NORMAL_SMS: Final = Constant(24, "measured", "SMs of the kernels in the DeepEP test settings (README rows)")
LL_SM_SHARE: Final = Constant(
    0.9,
    "assumed",
    "part of the SMs that low-latency kernels hold while they send and receive; between, traffic takes none (DeepEP "
    "README: hook-based overlap does not occupy any SM)",
)
ONE_SIDED_SMS: Final = Constant(32, "assumed", "SMs of one-sided kernels while they run, as NCCL's channels")
CHANNEL_BANDWIDTH: Final = Constant(
    17.6e9, "measured", f"bytes/s one SM forwards: 4096 tokens on 12 SMs in 754 us, {_NORMAL_ROWS}"
)
SM_COPY_BANDWIDTH: Final = Constant(
    18.9e9,
    "measured",
    "bytes/s of one SM inside a copy: 4096 tokens on 12 SMs in 754 us (dispatch, 7.5 KB a copy) and 1417 us (combine, "
    f"14.4 KB), {_NORMAL_ROWS}; assumed: the two alike",
)
SM_COPY_S: Final = Constant(
    29e-9, "measured", f"time of one SM for a copy beside its bytes, the same two rows and assumption, {_NORMAL_ROWS}"
)
NORMAL_NVLINK_SHARE: Final = Constant(
    0.92, "measured", f"4096 tokens on 24 SMs: 295 GB/s on the wire of the 320 that NCCL reaches, {_NORMAL_ROWS}"
)
COLLECTIVE_CHANNELS: Final = Constant(
    32, "assumed", "NCCL point-to-point channels, one SM each; 32 of 17.6 GB/s are the 528-563 GB/s of 8 B200"
)
COLLECTIVE_PEER_CHANNELS: Final = Constant(
    16, "measured", f"NCCL channels to one peer: 2 GPUs reach 268-284 GB/s, 16 SMs of 17.6, {_NCCL_ROWS}"
)
ONE_SIDED_SHARE: Final = Constant(
    0.755, "measured", "of nominal NVLink: 680 of 900 GB/s on the wire, TensorRT-LLM blog 18, GB200 EP8, 2048 tokens"
)
ONE_SIDED_SPREAD: Final = Constant(
    0.05, "measured", "power by which that falls with ranks beyond 8: 680 at EP8, 635 at EP32, TensorRT-LLM blog 18"
)
LL_COMBINE_BANDWIDTH: Final = Constant(
    245e9,
    "measured",
    f"wire bytes/s of a Hopper rank over NVLink, floor and receive pass taken out: 280 at 128 tokens, 237 at 1024, "
    f"{_LL_ROWS}",
)
_MASKED_ROWS: Final = (
    "uniform rows of aiconfigurator-core 0.12.0 wideep_generation_moe 0.5.10 (SGLang, DeepGEMM masked)"
)
_CONTEXT_ROWS: Final = (
    "uniform rows of aiconfigurator-core 0.12.0 wideep_context_moe 0.5.10 (SGLang, DeepGEMM contiguous)"
)
HBM_SHARE: Final = Constant(
    0.82,
    "measured",
    f"16.1 us for 44 MB of weights on H100, 11.1 on H200: 0.82 and 0.83 of 3.35 and 4.8 TB/s, {_MASKED_ROWS}",
)
HBM_SHARE_BLACKWELL: Final = Constant(
    0.74, "measured", f"7.7 us for 44 MB of weights on B200, 7.2 on GB200: 0.71 and 0.76 of 8 TB/s, {_MASKED_ROWS}"
)
COPY_SHARE: Final = Constant(
    0.78, "measured", f"of HBM bandwidth in scatter and gather: 8.3 ns a token of 21.7 KB on H100, {_CONTEXT_ROWS}"
)
COPY_SHARE_BLACKWELL: Final = Constant(
    0.5,
    "measured",
    f"of HBM bandwidth in scatter and gather: 5.4 ns a token of 21.7 KB on B200 and GB200, {_CONTEXT_ROWS}",
)

# -- bytes beside the payload --------------------------------------------------------------------------------------
LL_HEADER_BYTES: Final = Constant(16, "measured", "DeepEP low-latency message: token index in an int4 header")
NORMAL_META_BYTES: Final = Constant(8, "measured", "DeepEP internode SourceMeta per copy")
NORMAL_PICK_BYTES: Final = Constant(12, "measured", "DeepEP: int64 expert id and float32 weight per pick")
WEIGHT_BYTES: Final = Constant(4, "measured", "DeepEP combine: float32 weight per pick")
INDEX_BYTES: Final = Constant(8, "assumed", "int32 expert id and float32 weight per pick")

# -- arithmetic ----------------------------------------------------------------------------------------------------
GEMM_SHARE: Final = Constant(
    0.75,
    "measured",
    "share of peak inside a tile, from DeepGEMM README 55ab91f, m = 4096: N 7168 K 16384 1426 TFLOPS, N 7168 K 2048 "
    "1168, N 4096 K 7168 1265 on H800 (1978 peak), wave quantisation and tile overhead taken out",
)
GEMM_SHARE_BLACKWELL: Final = Constant(
    0.66, "measured", f"share of peak inside a tile: 2.16 ms for 65536 tokens on 64 experts of B200, {_CONTEXT_ROWS}"
)
TILE_OVERHEAD_BLOCKS: Final = Constant(
    4.0, "measured", "prologue and epilogue of a tile in K blocks of 128: ratio of the K 2048 and K 16384 rows above"
)
TILE_N: Final = Constant(128, "assumed", "columns of a tile; DeepGEMM chooses 64 to 160")
TILE_K: Final = Constant(128, "measured", "DeepGEMM block K, one fp8 scale")
TILE_M: Final = (64, 128)
"""Rows of a tile: DeepGEMM block M; the better of the two is taken, as its launcher does."""
LAUNCH_S: Final = Constant(
    3.6e-6,
    "measured",
    f"one kernel in a CUDA graph beyond its work: 18 of 36 us with one expert on H100, {_MASKED_ROWS}",
)
_WIDEEP_ROWS: Final = "rows without EPLB of aiconfigurator-core 0.12.0 wideep_moe 1.3.0rc10 (TensorRT-LLM, CUTLASS)"
CUTLASS_SHARE: Final = Constant(0.5, "measured", f"share of fp8 peak inside a tile, H100, {_WIDEEP_ROWS}")
CUTLASS_SHARE_BLACKWELL: Final = Constant(0.5, "measured", f"share of fp4 peak inside a tile, GB200, {_WIDEEP_ROWS}")
CUTLASS_LAUNCH_S: Final = Constant(
    3.6e-6, "measured", f"one kernel beyond its work, H100, with the passes below the best of a grid, {_WIDEEP_ROWS}"
)
CUTLASS_LAUNCH_BLACKWELL_S: Final = Constant(
    7e-6, "measured", f"one kernel beyond its work, GB200, the best of a grid, {_WIDEEP_ROWS}"
)
CUTLASS_TILE_M: Final = (32, 64, 128)
"""Rows of a tile of TensorRT-LLM's grouped GEMMs: of 64 to 128 and 32 to 128 the better on rows without EPLB."""
PASSES: Final = Constant(1, "measured", f"how often the kernels around the GEMMs move their bytes, {_CONTEXT_ROWS}")
CUTLASS_PASSES: Final = Constant(
    8, "measured", f"how often the kernels around the GEMMs would move their bytes, fp8 on H100, {_WIDEEP_ROWS}"
)
CUTLASS_PASSES_BLACKWELL: Final = Constant(
    3, "measured", f"how often the kernels around the GEMMs would move their bytes, nvfp4 on GB200, {_WIDEEP_ROWS}"
)
OVERLAP_POWER: Final = Constant(
    3,
    "measured",
    "power mean of arithmetic and memory time; of 2, 3, 4, 6 the best on dense rows of the DeepGEMM README",
)
_MEGAMOE_ROWS: Final = "balanced rows of aiconfigurator-core 0.12.0 dsv4_megamoe_module 0.5.10, GB200, EP4 to EP32"
FUSED_FLOOR_S: Final = Constant(
    66e-6, "measured", f"layer in one kernel, exchange included: 105 us with 6 experts, 5.9 us each, {_MEGAMOE_ROWS}"
)
FUSED_EXPOSED: Final = Constant(
    0.48,
    "measured",
    f"part of NVLink time that such a kernel does not hide: 0.35 to 0.70 at 32768 tokens, {_MEGAMOE_ROWS}",
)
FUSED_TILE_M: Final = (16, 32, 64, 128)
"""Rows of a tile of fused kernels: assumed, few rows lie across a tile with its operands swapped."""
FP4_FACTOR: Final = Constant(
    2, "datasheet", "Blackwell: dense fp4 against fp8, where weights and tokens are both four-bit"
)
ATTENTION_SHARE: Final = Constant(
    0.6, "assumed", "share of bf16 peak in prefill attention (FlashAttention-3 paper: up to 0.75 on H100)"
)
SMS: Final[dict[str, int]] = {
    "A100": 108, "A800": 108, "H100": 132, "H200": 132, "H800": 132, "GH200": 132, "H20": 78,
    "B200": 148, "B300": 148, "GB200": 152, "GB300": 152,
}  # fmt: skip
"""Streaming multiprocessors by device (datasheets)."""


@lru_cache(maxsize=256)
def family(device: str) -> str:
    """Return the product family of a device name: ``"NVIDIA H100-SXM"`` is ``"H100"``, unknown ones ``""``."""
    upper = device.upper()
    found = [name for name in SMS if name in upper]
    return max(found, key=len) if found else ""


def is_hopper(device: str) -> bool:
    """Whether a device is of NVIDIA's Hopper generation."""
    return family(device) in ("H100", "H200", "H800", "GH200", "H20")


def is_blackwell(device: str) -> bool:
    """Whether a device is of NVIDIA's Blackwell generation."""
    return family(device) in ("B200", "B300", "GB200", "GB300")


def floor_factor(devices: Iterable[str]) -> float:
    """Return by what floors measured on Hopper are multiplied on the slowest of these devices."""
    return BLACKWELL_FLOORS.value if any(map(is_blackwell, devices)) else 1.0


def shares(devices: Sequence[str], hopper: Constant, blackwell: Constant) -> list[float]:
    """Return the constant of each device's generation; devices before Blackwell count as Hopper."""
    return [blackwell.value if is_blackwell(device) else hopper.value for device in devices]
