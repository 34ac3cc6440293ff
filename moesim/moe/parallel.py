"""Expert parallelism in training: ranks share the batch and the experts, and exchange rows by all-to-all.

Launched by torchrun, every rank holds all weights but those of the experts, of which it holds an equal, contiguous
share. With one process nothing is exchanged and nothing here is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moesim.base.errors import InputError


@dataclass(frozen=True)
class Group:
    """The processes that train together: this one's `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over ranks.

        Its gradient is that of this rank's own value: averaged over ranks, as gradients are, that is the gradient of
        the mean, and the backward pass needs no exchange.
        """
        if self.size == 1:
            return x if x.requires_grad else x.clone()
        whole = x.detach().clone()
        dist.all_reduce(whole)
        whole /= self.size
        return whole + x - x.detach() if x.requires_grad else whole

    def exchange(self, x: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Send `send[i]` rows to rank i, in order, and return the `receive[i]` rows that each rank i sent."""
        result: Tensor = _Exchange.apply(x, list(send), list(receive))  # type: ignore[no-untyped-call]
        return result

    def counts(self, counts: Tensor) -> Tensor:
        """Tell each rank how many rows its experts get [experts]; return those of this rank's [ranks, experts here]."""
        result = torch.empty_like(counts)
        dist.all_to_all_single(result, counts.contiguous())
        return result.view(self.size, -1)

    def gather(self, x: Tensor) -> Tensor:
        """Return the tensors of all ranks joined along the first axis."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    def share(self, total: int) -> slice:
        """Return the part of `total` things that is this rank's."""
        each = total // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def wait(self) -> None:
        """Return when all ranks are here."""
        if self.size > 1:
            dist.barrier()


ALONE = Group()


@dataclass(frozen=True)
class Meeting:
    """Where processes of one machine meet that torchrun did not start: this one is `rank` of `size`.

    All name the same file, which must not be there yet: a port that was free a moment ago may not be now.
    """

    rank: int
    size: int
    file: Path


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        ctx.send, ctx.receive = send, receive
        return _all_to_all(x, send, receive)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _all_to_all(grad, ctx.receive, ctx.send), None, None


def _all_to_all(x: Tensor, send: list[int], receive: list[int]) -> Tensor:
    out = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), receive, send)
    return out


@contextmanager
def join(device: torch.device | str, meeting: Meeting | None = None) -> Iterator[tuple[Group, torch.device]]:
    """Join the processes that torchrun started, if it did; yield the group and the device of this process.

    Parameters
    ----------
    device
        torch device; of several GPUs each process takes its own.
    meeting
        Where processes meet that torchrun did not start.

    Raises
    ------
    InputError
        If there are more processes than GPUs on this machine.
    """
    device = torch.device(device)
    size = int(os.environ.get("WORLD_SIZE", "1")) if meeting is None else meeting.size
    if size == 1:
        yield ALONE, device
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0")) if meeting is None else meeting.rank
        if local >= torch.cuda.device_count():
            raise InputError(f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if meeting is None:
        dist.init_process_group(backend)
    else:
        file = f"file://{meeting.file.absolute()}"
        dist.init_process_group(backend, init_method=file, rank=meeting.rank, world_size=size)
    try:
        yield Group(dist.get_rank(), size), device
    finally:
        dist.destroy_process_group()
