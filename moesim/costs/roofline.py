"""Expert compute from datasheets: tiles in waves over the SMs, weight reads, activations, launches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.costs import constants as k
from moesim.costs.tuned import is_tuned, tuned
from moesim.spec import BF16, FP8_BLOCK, ModelSpec

if TYPE_CHECKING:
    from moesim.cluster import Cluster

_FP4_BYTES: Final = 0.6  # half a byte and scales
_KERNELS: Final = 5  # permute, first GEMM, activation (and quantisation), second GEMM, unpermute


@dataclass(frozen=True)
class Kernel:
    """Grouped GEMMs of one library.

    Share of peak inside an fp8 or fp4 tile, tile heights, what a launch costs, and how often the kernels around the
    GEMMs would move their bytes; pairs are (Hopper, Blackwell). ``align``: rows to which every expert is padded;
    ``moves``: whether kernels of its own put tokens into slots and add results up, or dispatch and combine do.
    """

    name: str
    hopper: k.Constant
    blackwell: k.Constant
    heights: tuple[int, ...]
    launches: tuple[k.Constant, k.Constant]
    passes: tuple[k.Constant, k.Constant]
    align: int = 0
    moves: bool = True


DEEPGEMM: Final = Kernel(
    "DeepGEMM", k.GEMM_SHARE, k.GEMM_SHARE_BLACKWELL, k.TILE_M, (k.LAUNCH_S, k.LAUNCH_S), (k.PASSES, k.PASSES)
)
MASKED: Final = replace(DEEPGEMM, name="DeepGEMM masked", moves=False)
"""Slots of fixed capacity that low-latency dispatch fills and combine empties; only rows that hold tokens compute."""
CONTIGUOUS: Final = replace(DEEPGEMM, name="DeepGEMM contiguous", heights=(128,), align=128)
"""Tokens of each expert in one block, padded to 128 rows, scattered before and gathered after."""
CUTLASS: Final = Kernel(
    "CUTLASS of TensorRT-LLM",
    k.CUTLASS_SHARE,
    k.CUTLASS_SHARE_BLACKWELL,
    k.CUTLASS_TILE_M,
    (k.CUTLASS_LAUNCH_S, k.CUTLASS_LAUNCH_BLACKWELL_S),
    (k.CUTLASS_PASSES, k.CUTLASS_PASSES_BLACKWELL),
)


@dataclass(frozen=True, eq=False)
class Device:
    """What the roofline needs of every rank, float64 [R].

    FLOP/s that GEMMs of these weights reach inside a tile, bytes/s of weight reads and of elementwise kernels, SMs,
    relative speed, seconds of a launch.
    """

    flops: Array
    hbm: Array
    copy: Array
    sms: Array
    speed: Array
    launch: Array
    notes: tuple[str, ...]

    @classmethod
    @lru_cache(maxsize=16)  # engines ask for it at every step
    def of(cls, cluster: Cluster, fp8: bool, fp4: bool = False, kernel: Kernel = DEEPGEMM) -> Device:
        """Take the datasheet figures of a cluster and what kernels reach of them."""
        families = [k.family(device) for device in cluster.device]
        unknown = sorted({d for d, f in zip(cluster.device, families, strict=True) if not f})
        notes = tuple(f"{device}: number of SMs not known, 132 assumed" for device in unknown)
        sms = np.array([k.SMS.get(name, 132) for name in families], np.float64)
        if fp8 and (without := _without_fp8(cluster)):
            notes += (f"{', '.join(without)}: no fp8 tensor cores, fp8 weights are multiplied at the bf16 rate",)
        flops = cluster.flops_fp8 if fp8 else cluster.flops_bf16
        if fp4:
            flops = flops * np.where([k.is_blackwell(d) for d in cluster.device], k.FP4_FACTOR.value, 1.0)
        gemm, hbm, copy = (
            np.array(k.shares(cluster.device, *pair))
            for pair in (
                (kernel.hopper, kernel.blackwell) if fp8 else (k.GEMM_SHARE, k.GEMM_SHARE_BLACKWELL),
                (k.HBM_SHARE, k.HBM_SHARE_BLACKWELL),
                (k.COPY_SHARE, k.COPY_SHARE_BLACKWELL),
            )
        )
        gemm, hbm = (
            np.full(len(share), tuned(cluster, name, k.GEMM_SHARE).value) if is_tuned(cluster, name) else share
            for name, share in (("gemm_share", gemm), ("hbm_share", hbm))
        )
        memory = cluster.hbm_bandwidth
        # in bf16 nothing is quantised on the way
        passes = np.array(k.shares(cluster.device, *kernel.passes)) if fp8 else 1.0
        launch = np.array(k.shares(cluster.device, *kernel.launches))
        if is_tuned(cluster, "launch"):
            launch = np.full(len(launch), tuned(cluster, "launch", k.LAUNCH_S).value)
        return cls(flops * gemm, memory * hbm, memory * copy / passes, sms, cluster.speed, launch, notes)


def gemm_share(cluster: Cluster) -> k.Constant:
    """Return the share of peak inside a tile as it is cited; in a mixed cluster that of Hopper."""
    blackwell = all(map(k.is_blackwell, cluster.device))
    return tuned(cluster, "gemm_share", k.GEMM_SHARE_BLACKWELL if blackwell else k.GEMM_SHARE)


def hbm_share(cluster: Cluster) -> k.Constant:
    """Return the share of HBM bandwidth as it is cited; in a mixed cluster that of Hopper."""
    blackwell = all(map(k.is_blackwell, cluster.device))
    return tuned(cluster, "hbm_share", k.HBM_SHARE_BLACKWELL if blackwell else k.HBM_SHARE)


def _without_fp8(cluster: Cluster) -> list[str]:
    """Return the devices of a cluster that are no faster in fp8 than in bf16: they have no fp8 tensor cores."""
    slow = np.asarray(cluster.flops_fp8) <= np.asarray(cluster.flops_bf16)
    return sorted({device for device, has_none in zip(cluster.device, slow.tolist(), strict=True) if has_none})


def uses_fp8(spec: ModelSpec) -> bool:
    """Whether expert GEMMs run in fp8: weights of at most a byte and tokens dispatched in at most block-scaled fp8.

    Narrower weights (MXFP4) are widened to the tokens' type in the kernel: bf16 tokens compute in bf16.
    """
    return spec.weight_bytes <= FP8_BLOCK and spec.dispatch_bytes <= FP8_BLOCK


def uses_fp4(spec: ModelSpec) -> bool:
    """Whether weights and tokens both are four-bit, so that devices with fp4 arithmetic use it."""
    return max(spec.weight_bytes, spec.dispatch_bytes) <= _FP4_BYTES


def mlp_s(
    slot_tokens: Array,
    device: Device,
    spec: ModelSpec,
    intermediate: int,
    permuted: bool = True,
    kernel: Kernel = DEEPGEMM,
) -> Array:
    """Return the seconds of a grouped gated MLP on every rank, [..., R] from tokens per slot [..., R, C].

    Two grouped GEMMs and what stands around them; each part takes the longer of arithmetic and memory. A slot
    without tokens reads no weights.

    Parameters
    ----------
    permuted
        Whether tokens are gathered into slots and back (routed experts) or already lie in one block (dense).
    """
    m = np.asarray(slot_tokens, np.float64)
    wide = (2 if spec.gated else 1) * intermediate
    fp8 = uses_fp8(spec)
    element = FP8_BLOCK if fp8 else BF16
    rows, active = m.sum(axis=-1), (m > 0).sum(axis=-1)
    padded = np.ceil(m / kernel.align) * kernel.align if kernel.align and permuted else m
    first = gemm_s(padded, device, wide, spec.hidden, kernel.heights)
    second = gemm_s(padded, device, spec.hidden, intermediate, kernel.heights)
    first_bytes = active * wide * spec.hidden * spec.weight_bytes + rows * (spec.hidden * element + wide * BF16)
    second_bytes = active * spec.hidden * intermediate * spec.weight_bytes
    second_bytes = second_bytes + rows * (intermediate * element + spec.hidden * BF16)
    between = rows * (wide * BF16 + intermediate * element)
    # write into slots, and read the results to add them up per token; what is read once per token counts as received
    around = rows * spec.hidden * (element + BF16) if permuted and kernel.moves else 0.0
    busy = together(first, first_bytes / device.hbm) + together(second, second_bytes / device.hbm)
    busy = busy + (between + around) / device.copy
    launches = (_KERNELS if permuted else _KERNELS - 2) * device.launch
    return np.asarray((busy + launches) / device.speed)


def together(arithmetic: Array, memory: Array) -> Array:
    """Return the time of work that computes and reads at once: the longer, and more where both take alike.

    Tiles that wait for their weights leave tensor cores idle, so that the overlap is not perfect.
    """
    power = k.OVERLAP_POWER.value
    return np.asarray((arithmetic**power + memory**power) ** (1 / power))


def gemm_s(m: Array, device: Device, n: int, depth: int, heights: tuple[int, ...] = k.TILE_M) -> Array:
    """Return the arithmetic time [..., R] of a grouped GEMM: whole tiles in whole waves, the better tile height."""
    blocks = np.ceil(depth / k.TILE_K.value) + k.TILE_OVERHEAD_BLOCKS.value
    columns = np.ceil(n / k.TILE_N.value)
    best = None
    for height in heights:
        tiles = np.ceil(m / height).sum(axis=-1) * columns
        tile_flops = 2.0 * height * k.TILE_N.value * k.TILE_K.value * blocks
        seconds = np.ceil(tiles / device.sms) * tile_flops * device.sms / device.flops
        best = seconds if best is None else np.minimum(best, seconds)
    return np.asarray(best)


@dataclass(frozen=True, eq=False)
class Roofline:
    """The roofline as a compute model."""

    device: Device
    sources: Mapping[str, str]
    notes: tuple[str, ...]
    kernel: Kernel = DEEPGEMM

    def __call__(self, slot_tokens: Array, cluster: Cluster, spec: ModelSpec) -> Array:
        """Return the seconds of the routed experts [..., R] from tokens per slot [..., R, C]."""
        return mlp_s(slot_tokens, self.device, spec, spec.intermediate, kernel=self.kernel)


def roofline(spec: ModelSpec, cluster: Cluster, path: str | None = None, kernel: Kernel = DEEPGEMM) -> Roofline:
    """Build the roofline of a model on a cluster; with DeepGEMM's constants where no kernel is given."""
    device = Device.of(cluster, uses_fp8(spec), uses_fp4(spec), kernel)
    names = ", ".join(dict.fromkeys(cluster.device))
    fp8 = uses_fp8(spec) and set(cluster.device) > set(_without_fp8(cluster))
    math = "fp4 where the device has it" if uses_fp4(spec) else "fp8" if fp8 else "bf16"
    notes = (f"expert compute by roofline: no measured table for {names}; arithmetic in {math}", *device.notes)
    own = {
        "compute: share of peak in a tile": str(kernel.hopper),
        "compute: share of peak in a tile, Blackwell": str(kernel.blackwell),
        "compute: launch": str(kernel.launches[0]),
        "compute: launch, Blackwell": str(kernel.launches[1]),
    }
    names_of = {"gemm_share": "share of peak in a tile", "hbm_share": "HBM share", "launch": "launch"}
    for name, title in names_of.items():
        if is_tuned(cluster, name):
            own[f"compute: {title}"] = str(tuned(cluster, name, k.GEMM_SHARE))
    return Roofline(device, SOURCES | own, notes, kernel)


def masked(spec: ModelSpec, cluster: Cluster, path: str | None = None) -> Roofline:
    """Build the roofline of DeepGEMM's masked grouped GEMMs (decode with DeepEP low latency)."""
    return roofline(spec, cluster, path, MASKED)


def contiguous(spec: ModelSpec, cluster: Cluster, path: str | None = None) -> Roofline:
    """Build the roofline of DeepGEMM's contiguous grouped GEMMs (prefill with DeepEP normal)."""
    return roofline(spec, cluster, path, CONTIGUOUS)


def cutlass(spec: ModelSpec, cluster: Cluster, path: str | None = None) -> Roofline:
    """Build the roofline with the constants of TensorRT-LLM's CUTLASS kernels."""
    return roofline(spec, cluster, path, CUTLASS)


SOURCES: Final[dict[str, str]] = {
    f"compute: {name}": str(constant)
    for name, constant in {
        "tile overhead": k.TILE_OVERHEAD_BLOCKS,
        "tile columns": k.TILE_N,
        "K block": k.TILE_K,
        "HBM share": k.HBM_SHARE,
        "HBM share, Blackwell": k.HBM_SHARE_BLACKWELL,
        "HBM share of copies": k.COPY_SHARE,
        "HBM share of copies, Blackwell": k.COPY_SHARE_BLACKWELL,
        "fp4 factor": k.FP4_FACTOR,
        "overlap of arithmetic and memory": k.OVERLAP_POWER,
    }.items()
} | {
    "compute: tile rows": "measured: 64 or 128, DeepGEMM block M; the faster is taken",
    "compute: SMs": "datasheet: A100 108, H100 and H200 132, B200 148, GB200 152",
}
"""Constants of the roofline and where they come from."""
