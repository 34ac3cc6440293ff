"""What the device can do at best, measured in the same run: copy bandwidth and matrix rates on random data."""

from __future__ import annotations

from typing import Any

import torch

from moesim.moe.profile.device import Device
from moesim.moe.profile.timing import Clock


def ceilings(device: Device, clock: Clock, *, small: bool = False) -> dict[str, float]:
    """Return `copy_bytes_per_s` (bytes read plus written), `gemm_bf16_flops`, and `gemm_fp8_flops` where there is fp8.

    Parameters
    ----------
    small
        For trying the command out: sizes that a CPU manages.
    """
    bytes_ = 2**24 if small else 2**32
    source = torch.randint(0, 255, (bytes_,), dtype=torch.uint8, device=device.torch)
    target = torch.empty_like(source)
    result = {"copy_bytes_per_s": 2 * bytes_ / clock(lambda: target.copy_(source)).seconds}
    size = 256 if small else 8192
    a, b = (torch.randn(size, size, device=device.torch, dtype=torch.bfloat16) for _ in range(2))
    result["gemm_bf16_flops"] = 2.0 * size**3 / clock(lambda: a @ b).seconds
    if device.fp8:
        result["gemm_fp8_flops"] = 2.0 * size**3 / clock(_fp8_product(a, b)).seconds
    return result


def _fp8_product(a: torch.Tensor, b: torch.Tensor) -> Any:
    one = torch.ones((), device=a.device)
    left, right = a.to(torch.float8_e4m3fn), b.t().contiguous().to(torch.float8_e4m3fn).t()
    return lambda: torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
