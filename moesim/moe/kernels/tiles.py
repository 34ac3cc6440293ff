"""Tile shapes that the tuning tries, and the few that a problem can use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton

from moesim.moe.kernels import interpreted


@dataclass(frozen=True)
class Tile:
    """Shape of one program's work.

    Parameters
    ----------
    rows, columns, depth
        Tile of the result and how much of the sum is loaded at once.
    warps, stages
        Warps of a program; loads in flight (software pipeline).
    box
        Load by the tensor memory accelerator, in boxes of a descriptor, rather than by pointers (Hopper and later).
    persistent
        As many programs as multiprocessors, each walking over tiles, rather than a program a tile.
    group
        Row blocks that run side by side, so that they share weights in L2.
    """

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 3
    box: bool = False
    persistent: bool = False
    group: int = 8

    def meta(self) -> dict[str, Any]:
        """Return the constants of the grouped kernel."""
        return {
            "BLOCK_M": self.rows, "BLOCK_N": self.columns, "BLOCK_D": self.depth, "GROUP": self.group,
            "BOX": self.box, "PERSISTENT": self.persistent,
        }  # fmt: skip

    def config(self, names: Sequence[str]) -> triton.Config:
        """Return it as a configuration of the tuner, with those constants that a kernel has."""
        meta = {name: value for name, value in self.meta().items() if name in names}
        return triton.Config(meta, num_warps=self.warps, num_stages=self.stages)


FEW: Final = (
    Tile(16, 64, 128, 4, 4),
    Tile(16, 64, 256, 4, 3),
    Tile(16, 128, 64, 4, 6),
    Tile(16, 128, 128, 4, 4),
    Tile(16, 128, 128, 8, 4, box=True),
    Tile(16, 128, 128, 4, 3, box=True, persistent=True),
    Tile(32, 64, 128, 4, 4),
    Tile(32, 128, 64, 4, 5),
    Tile(32, 128, 128, 4, 4, box=True),
)
"""For few rows an expert: the weights' bytes bind, so many of them must be in flight."""
MANY: Final = (
    Tile(64, 128, 64, 4, 4),
    Tile(64, 128, 64, 4, 4, box=True),
    Tile(64, 128, 64, 4, 5, box=True, persistent=True),
    Tile(64, 256, 64, 8, 3, box=True),
    Tile(128, 64, 64, 4, 4, box=True),
    Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 64, 8, 3, box=True),
    Tile(128, 128, 64, 8, 4, box=True, persistent=True),
    Tile(128, 128, 64, 4, 4, box=True, persistent=True),
    Tile(128, 256, 64, 8, 3, box=True),
    Tile(128, 256, 64, 8, 3, box=True, persistent=True),
    Tile(128, 256, 64, 8, 3, box=True, persistent=True, group=16),
)
"""For many rows: arithmetic binds, so tiles are large."""
EXACT: Final = (Tile(16, 32, 32, 4, 2), Tile(32, 64, 32, 4, 2), Tile(64, 64, 32, 4, 2))
"""For float32, which has no tensor cores of full precision: large tiles would not fit the registers."""
FP8_TILES: Final = (
    Tile(16, 64, 128, 4, 5),
    Tile(16, 128, 128, 4, 4),
    Tile(32, 128, 128, 4, 4),
    Tile(64, 64, 128, 4, 4),
    Tile(64, 128, 128, 4, 3),
    Tile(64, 128, 128, 4, 3, persistent=True),
    Tile(128, 64, 128, 8, 3),
    Tile(128, 128, 128, 8, 3),
    Tile(128, 128, 128, 8, 3, persistent=True),
)
"""For fp8; the depth is the block of a scale."""
GRADIENT: Final = (
    Tile(32, 64, 64, 4, 3),
    Tile(64, 64, 64, 4, 3),
    Tile(16, 32, 32, 4, 2),
    Tile(16, 64, 32, 4, 2),
    Tile(64, 128, 64, 4, 3),
    Tile(64, 128, 128, 8, 3),
    Tile(32, 128, 128, 8, 4),
)
"""For the gradient of weights: `depth x columns` of the result, `rows` summed over at once."""
PORTABLE: Final = Tile(16, 32, 32)
"""What the interpreter runs."""


def candidates(tiles: Sequence[Tile], names: Sequence[str]) -> list[triton.Config]:
    """Return the configurations that the tuner may choose from; one alone where nothing can be measured."""
    return [tile.config(names) for tile in ((PORTABLE,) if interpreted() else tiles)]


def prune(configs: list[triton.Config], named: Mapping[str, Any], **kwargs: Any) -> list[triton.Config]:
    """Leave out tiles that are far from the number of rows, wider than the matrix, or that the device cannot do.

    Called by the tuner with the arguments of the launch.
    """
    given = {**named, **kwargs}
    rows, width = int(given["ROWS"]), int(given["N"])
    boxes = _boxes_allowed(given)
    exact = "x" in given and given["x"].dtype == torch.float32
    fits = [
        config for config in configs
        if exact == (config.kwargs["BLOCK_D"] <= 32)
        and (boxes or not config.kwargs.get("BOX", False))
        and config.kwargs["BLOCK_M"] <= max(16, 2 * rows)
        and (exact or 8 * config.kwargs["BLOCK_M"] > rows or config.kwargs["BLOCK_M"] >= 128)
        and config.kwargs["BLOCK_N"] < max(128, 2 * width)
        # two sums of 128 x 256 in float32 do not fit the registers
        and not (given.get("SWIGLU") and config.kwargs["BLOCK_M"] * config.kwargs["BLOCK_N"] > 128 * 128)
    ]  # fmt: skip
    return fits or configs[:1]


def prune_gradient(configs: list[triton.Config], named: Mapping[str, Any], **kwargs: Any) -> list[triton.Config]:
    """Leave the large tiles to the dtypes that have tensor cores; called by the tuner."""
    exact = {**named, **kwargs}["x"].dtype == torch.float32
    return [config for config in configs if exact == (config.kwargs["BLOCK_D"] <= 32)] or configs[:1]


def _boxes_allowed(given: Mapping[str, Any]) -> bool:
    """Whether the copy engine takes these matrices: device, alignment, and rows that lie in a row."""
    if given.get("GATHER") or "stride_x" not in given:
        return False
    x, w = given["x"], given["w"]
    if not x.is_cuda or torch.cuda.get_device_capability(x.device)[0] < 9:
        return False
    strides = (int(given["stride_x"]), int(given["stride_n"] if given["DEEP"] else given["stride_d"]))
    return all(stride * x.element_size() % 16 == 0 for stride in strides) and all(
        tensor.data_ptr() % 16 == 0 for tensor in (x, w)
    )


def bench(kernel: Any, quantiles: Any) -> Any:
    """Time one candidate briefly; what is reported to people is measured elsewhere and for longer."""
    return triton.testing.do_bench(kernel, warmup=1, rep=6, quantiles=quantiles)
