"""What stands around the experts: rows gathered for dispatch, attention, and all-to-all between GPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from moesim.base.errors import InputError
from moesim.moe.profile.device import Device
from moesim.moe.profile.timing import Clock, event
from moesim.spec import ModelSpec

_SIZES: Final = tuple(2**power for power in range(10, 29, 2))
_ROWS: Final = "rows.json"
_TIMEOUT: Final = timedelta(minutes=2)


def permutes(
    device: Device, clock: Clock, hidden: int, tokens: tuple[int, ...], top_k: int
) -> Iterator[dict[str, Any]]:
    """Yield the time to copy each token once for each of its picks, in random order, as dispatch does on the device."""
    for count in tokens:
        x = torch.randn(count, hidden, device=device.torch, dtype=torch.bfloat16)
        order = torch.randperm(count * top_k, device=device.torch) // top_k
        timed = clock(lambda x=x, order=order: x.index_select(0, order))  # type: ignore[misc]
        moved = 2.0 * count * (1 + top_k) * hidden
        yield {
            "hidden": hidden, "tokens": count, "top_k": top_k, "seconds": timed.seconds,
            "bytes_per_s": moved / timed.seconds,
        }  # fmt: skip


def attentions(
    device: Device, clock: Clock, spec: ModelSpec, tokens: tuple[int, ...], contexts: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Yield the time of grouped-query attention: prefill of whole prompts, and decode of many requests."""
    shape = spec.attention
    if shape is None or shape.latent:
        return

    def draw(batch: int, heads: int, length: int) -> torch.Tensor:
        return torch.randn(batch, heads, length, shape.head_dim, device=device.torch, dtype=torch.bfloat16)

    for context in contexts:
        q, k, v = (draw(1, heads, context) for heads in (shape.heads, shape.kv_heads, shape.kv_heads))
        timed = clock(lambda q=q, k=k, v=v: _attend(q, k, v, causal=True))  # type: ignore[misc]
        flops = 2.0 * context * context * shape.heads * shape.head_dim
        yield _row(spec, "prefill", 1, context, timed.seconds) | {"flops_per_s": flops / timed.seconds}
        for count in tokens:
            if count * context * shape.kv_heads * shape.head_dim > 2**31:
                continue
            q, k, v = (
                draw(count, shape.heads, 1),
                draw(count, shape.kv_heads, context),
                draw(count, shape.kv_heads, context),
            )
            timed = clock(lambda q=q, k=k, v=v: _attend(q, k, v, causal=False))  # type: ignore[misc]
            moved = 2.0 * count * context * shape.cache_elements()
            yield _row(spec, "decode", count, context, timed.seconds) | {"bytes_per_s": moved / timed.seconds}


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)


def _row(spec: ModelSpec, phase: str, requests: int, context: int, seconds: float) -> dict[str, Any]:
    return {"model": spec.name, "phase": phase, "requests": requests, "context": context, "seconds": seconds}


def all_to_all(
    device: Device, *, processes: int | None = None, sizes: tuple[int, ...] = _SIZES
) -> list[dict[str, Any]]:
    """Return the time of all-to-all over all GPUs of this machine (NCCL), or over CPU processes (gloo).

    Parameters
    ----------
    processes
        Default: as many as there are GPUs; fewer than two measure nothing.
    sizes
        Bytes that a process sends in all.

    Raises
    ------
    InputError
        If a process fails; the others are ended.
    """
    count = processes if processes is not None else torch.cuda.device_count() if device.gpu else 1
    if count < 2:
        return []
    backend = "nccl" if device.gpu else "gloo"
    with TemporaryDirectory() as folder:
        try:
            spawn(_exchange, args=(count, folder, backend, sizes), nprocs=count)  # type: ignore[no-untyped-call]
        except (ProcessExitedException, ProcessRaisedException) as error:
            last = str(error).strip().splitlines()[-1]
            raise InputError(f"all-to-all of {count} processes over {backend} failed: {last}") from error
        rows: list[dict[str, Any]] = json.loads(Path(folder, _ROWS).read_text(encoding="utf-8"))
    return rows


def _exchange(rank: int, count: int, folder: str, backend: str, sizes: tuple[int, ...]) -> None:
    import time

    from torch import distributed

    # a file to meet at: a port that was free a moment ago may not be now
    meet = f"file://{Path(folder, 'meet')}"
    distributed.init_process_group(backend, init_method=meet, rank=rank, world_size=count, timeout=_TIMEOUT)
    gpu = backend == "nccl"
    here = torch.device("cuda", rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(here)
    rows = list[dict[str, Any]]()
    try:
        for size in sizes:
            elements = max(1, size // 2 // count) * count
            source = torch.randn(elements, device=here).to(torch.bfloat16)
            target = torch.empty_like(source)
            times = []
            for turn in range(13):
                distributed.barrier()
                if gpu:
                    start, stop = event(), event()
                    start.record()
                    distributed.all_to_all_single(target, source)
                    stop.record()
                    torch.cuda.synchronize(here)
                    seconds = start.elapsed_time(stop) * 1e-3
                else:
                    begin = time.perf_counter()
                    distributed.all_to_all_single(target, source)
                    seconds = time.perf_counter() - begin
                if turn >= 3:
                    times.append(seconds)
            # all end when the slowest does
            slowest = torch.tensor(times, device=here)
            distributed.all_reduce(slowest, op=distributed.ReduceOp.MAX)
            median = float(slowest.median())
            sent = 2.0 * elements * (count - 1) / count
            rows.append({
                "backend": backend, "processes": count, "bytes": 2 * elements, "seconds": median,
                "bytes_per_s": sent / median,
            })  # fmt: skip
        if rank == 0:
            Path(folder, _ROWS).write_text(json.dumps(rows), encoding="utf-8")
    finally:
        distributed.destroy_process_group()
