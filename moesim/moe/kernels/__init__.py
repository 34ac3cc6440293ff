"""Triton kernels of the mixture: choosing experts, grouping rows, grouped products, and their gradients.

`jit/` holds the device code and imports nothing but Triton; the modules here launch it on tensors. Importing this
package needs torch, importing its modules Triton too. Who wants experts computed calls `moesim.moe.experts`, which
takes these kernels where the tensors lie on a GPU and PyTorch elsewhere.

Under ``TRITON_INTERPRET=1`` Triton runs device code on the CPU, for tests.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@cache
def available() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton interprets device code on the CPU: right, slow, and no measurement of anything."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def usable(tensor: Tensor) -> bool:
    """Whether the kernels run where this tensor lies."""
    return bool(tensor.is_cuda) and available()
