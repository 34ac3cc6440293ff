"""One small file (or folder) of every trace format, as the tool that writes it would."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moesim.trace import Trace


def parquet(trace: Trace, folder: Path) -> Path:
    trace.write(folder / "trace.parquet")
    return folder / "trace.parquet"


def npz(trace: Trace, folder: Path) -> Path:
    np.savez(folder / "trace.npz", experts=trace.routes)
    return folder / "trace.npz"


def eplb_loads(trace: Trace, folder: Path) -> Path:
    np.save(folder / "loads.npy", trace.loads)
    return folder / "loads.npy"


def sglang_stat(trace: Trace, folder: Path) -> Path:
    path = folder / "recorder.json"
    path.write_text(json.dumps({"logical_count": trace.loads[None].tolist(), "rank": 0}))
    return path


def sglang_pass(trace: Trace, folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    identity = np.tile(np.arange(trace.spec.experts), (trace.layers, 1))
    record = {"forward_pass_id": 0, "rank": 0, "global_physical_count": torch.tensor(trace.loads, dtype=torch.int32)}
    path = folder / "expert_distribution_recorder_1.5_0.pt"
    torch.save({"records": [record], "last_physical_to_logical_map": torch.tensor(identity)}, path)
    return path


def sglang_token(trace: Trace, folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    identity = np.tile(np.arange(trace.spec.experts), (trace.layers, 1))
    record = {
        "forward_pass_id": 0,
        "rank": 0,
        "forward_mode": 1,
        "positions": torch.tensor(trace.position.astype(np.int64)),
        "extend_seq_lens": np.unique(trace.request, return_counts=True)[1].tolist(),
        "topk_ids_of_layer": torch.tensor(trace.routes.transpose(1, 0, 2).astype(np.int32)),
    }
    path = folder / "expert_distribution_recorder_1.5_0.pt"
    torch.save({"records": [record], "last_physical_to_logical_map": torch.tensor(identity)}, path)
    return path


def routed_experts(trace: Trace, folder: Path) -> Path:
    lines = []
    for request in np.unique(trace.request):
        routes = trace.routes[trace.request == request].astype("<i4")
        meta = {"routed_experts": base64.b64encode(routes.tobytes()).decode(), "prompt_tokens": len(routes),
                "completion_tokens": 1}  # fmt: skip
        lines.append(json.dumps({"text": "", "meta_info": meta}))
    path = folder / "responses.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def trtllm_stats(trace: Trace, folder: Path) -> Path:
    spec = trace.spec
    (folder / "meta_info.json").write_text(
        json.dumps({"num_experts": spec.experts, "num_experts_per_token": spec.top_k})
    )
    size = 8 * spec.experts
    header = {
        f"0_{layer}": {"dtype": "I64", "shape": [spec.experts], "data_offsets": [i * size, (i + 1) * size]}
        for i, layer in enumerate(spec.layer_ids)
    }
    text = json.dumps(header).encode()
    data = trace.loads.astype("<i8").tobytes()
    (folder / "rank0.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def megatron(trace: Trace, folder: Path) -> Path:
    lines = [
        {"step": 0, "stage": 0, "block": "decoder", "layer": layer, "rank": 0, "num_tokens": trace.tokens,
         "topk": trace.spec.top_k, "top_indices": trace.routes[:, i].tolist()}
        for i, layer in enumerate(trace.spec.layer_ids)
    ]  # fmt: skip
    path = folder / "router_trace_rank0.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def expert_selection(trace: Trace, folder: Path) -> Path:
    step = {str(layer): trace.routes[:, i].tolist() for i, layer in enumerate(trace.spec.layer_ids)}
    path = folder / "request.json"
    path.write_text(json.dumps([step]))
    return path


def flame(trace: Trace, folder: Path) -> Path:
    place = folder / "actives" / "iter_10"
    place.mkdir(parents=True)
    for i, layer in enumerate(trace.spec.layer_ids):
        indices = pa.array(trace.routes[:, i].tolist(), pa.list_(pa.int16()))
        scores = pa.array(np.full(trace.routes[:, i].shape, 0.25, np.float16).tolist(), pa.list_(pa.float16()))
        pq.write_table(pa.table({"indices": indices, "scores": scores}), place / f"layer_{layer:02d}.parquet")
    return folder


def jsonl(trace: Trace, folder: Path) -> Path:
    lines = [
        {"layer": layer, "topk_ids": trace.routes[token, i].tolist()}
        for i, layer in enumerate(trace.spec.layer_ids)
        for token in range(trace.tokens)
    ]
    path = folder / "picks.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def parts(trace: Trace, folder: Path) -> Path:
    half = trace.tokens // 2
    trace.select(np.arange(half)).write(folder / "000000.parquet")
    trace.select(np.arange(half, trace.tokens)).write(folder / "000001.parquet")
    return folder


SAMPLES: dict[str, Callable[[Trace, Path], Path]] = {
    "parquet": parquet,
    "npz": npz,
    "eplb-loads": eplb_loads,
    "sglang-stat": sglang_stat,
    "sglang-pass": sglang_pass,
    "sglang-token": sglang_token,
    "routed-experts": routed_experts,
    "trtllm-stats": trtllm_stats,
    "megatron": megatron,
    "expert-selection": expert_selection,
    "flame": flame,
    "jsonl": jsonl,
    "parts": parts,
}
