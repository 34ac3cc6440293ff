"""Files of other tools, written here from a trace of moesim the way those tools write them.

The model has dense layers between its MoE layers, so that layer numbers, rows of dense layers and ordinals differ.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
from small_traces import random_trace

from moesim.spec import ModelSpec
from moesim.trace import Trace

SPEC = ModelSpec("mixed", (1, 2, 4), 5, experts=8, top_k=2, hidden=16, intermediate=32, dense_intermediate=32)
HIDDEN = 5
SLOTS = 10


def sample_trace(seed: int = 0) -> Trace:
    """Three requests, the later half of each decoded."""
    return random_trace(seed, [6, 4, 8], decode=0.5, spec=SPEC)


def physical_map(seed: int = 7) -> np.ndarray:
    """Logical expert of every slot of all decoder layers, [5, 10]; dense layers hold the trivial map."""
    rng = np.random.default_rng(seed)
    rows = np.tile(np.arange(SLOTS) % SPEC.experts, (HIDDEN, 1))
    for layer in SPEC.layer_ids:
        rows[layer] = rng.permutation(np.r_[np.arange(SPEC.experts), rng.integers(SPEC.experts, size=2)])
    return rows


def to_slots(routes: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """One slot that holds each expert: [tokens, layers, top_k] -> [decoder layers, tokens, top_k]; -1 where dense."""
    slots = np.full((HIDDEN, len(routes), SPEC.top_k), -1, np.int32)
    for i, layer in enumerate(SPEC.layer_ids):
        slot_of = [int(np.flatnonzero(experts[layer] == expert)[-1]) for expert in range(SPEC.experts)]
        slots[layer] = np.array(slot_of)[routes[:, i]]
    return slots


def all_layers(array: np.ndarray, axis: int, fill: int = 0) -> np.ndarray:
    """Spread the MoE layers over all decoder layers."""
    shape = list(array.shape)
    shape[axis] = HIDDEN
    out = np.full(shape, fill, array.dtype)
    index = [slice(None)] * array.ndim
    index[axis] = list(SPEC.layer_ids)
    out[tuple(index)] = array
    return out


def npy(array: np.ndarray) -> str:
    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode()


def write_stat(folder: Path, trace: Trace) -> Path:
    import torch

    slots = np.zeros((16, HIDDEN, SPEC.experts), np.int32)
    slots[3 : 3 + trace.steps] = all_layers(trace.counts.astype(np.int32), axis=1)
    content = {"rank": 0, "logical_count": torch.from_numpy(slots), "average_utilization_rate_over_window": None}
    path = folder / "expert_distribution_recorder_1700000000.25.pt"
    torch.save(content, path)
    return path


def write_passes(folder: Path, trace: Trace, ranks: int = 2, **change) -> Path:
    """Rank r counts what its slots got; passes are the steps of the trace."""
    import torch

    experts = physical_map()
    for rank in range(ranks):
        records = []
        for step in trace.step_ids:
            slots = to_slots(trace.routes[trace.step == step], experts)
            counts = np.zeros((HIDDEN, SLOTS), np.int32)
            for layer in SPEC.layer_ids:
                mine, number = np.unique(slots[layer], return_counts=True)
                counts[layer, mine] = np.where(mine * ranks // SLOTS == rank, number, 0)
            record = {"forward_pass_id": int(step), "rank": rank, "gatherer_key": "primary"}
            records.append(record | {"global_physical_count": torch.from_numpy(counts)})
        content = {"records": records, "last_physical_to_logical_map": torch.from_numpy(experts)} | change
        torch.save(content, folder / f"expert_distribution_recorder_1700000000.25_{rank}.pt")
    return folder / "expert_distribution_recorder_1700000000.25_0.pt"


def write_tokens(folder: Path, trace: Trace, ranks: int = 2, same: bool = False, **change) -> Path:
    """Every request is a pass for its prompt and one a decoded token; requests are dealt to ranks."""
    import torch

    experts = physical_map()
    for rank in range(ranks):
        records = []
        for request in np.unique(trace.request):
            if not same and request % ranks != rank:
                continue
            rows = np.flatnonzero(trace.request == request)
            prompt = [row for row in rows if trace.phase[row] == 0]
            for block in [prompt, *([row] for row in rows[len(prompt) :])]:
                slots = np.full((HIDDEN, len(block), 8), -1, np.int32)
                slots[..., : SPEC.top_k] = to_slots(trace.routes[block], experts)
                mode = 1 if trace.phase[block[0]] == 0 else 2
                records.append(
                    {
                        "forward_pass_id": int(block[0]), "rank": rank, "gatherer_key": "primary",
                        "input_ids": [int(row) + 100 for row in block],
                        "positions": [int(trace.position[row]) for row in block],
                        "extend_seq_lens": [len(block)] if mode == 1 else None, "forward_mode": mode,
                        "topk_ids_of_layer": torch.from_numpy(slots), "misc_objects": [],
                        "global_physical_count": torch.zeros(HIDDEN, SLOTS, dtype=torch.int32),
                    }
                )  # fmt: skip
        content = {"records": records, "last_physical_to_logical_map": torch.from_numpy(experts)} | change
        torch.save(content, folder / f"expert_distribution_recorder_1700000000.25_{rank}.pt")
    return folder / "expert_distribution_recorder_1700000000.25_0.pt"


def responses(trace: Trace, engine: str = "sglang", start: int = 0) -> list[dict]:
    """A response a request; the last token of a request was never routed."""
    out = []
    for request in np.unique(trace.request):
        rows = np.flatnonzero(trace.request == request)
        dense = all_layers(trace.routes[rows].astype(np.int32), axis=1)[start:]
        prompt = int((trace.phase[rows] == 0).sum())
        counts = {"prompt_tokens": prompt, "completion_tokens": len(rows) + 1 - prompt}
        if engine == "sglang":
            payload = base64.b64encode(dense.astype("<i4").tobytes()).decode()
            out.append({"text": "...", "meta_info": {"id": f"r{request}", **counts, "routed_experts": payload}})
        elif engine == "openai":
            payload = base64.b64encode(dense.astype("<i4").tobytes()).decode()
            out.append({"choices": [{"index": 0}], "usage": counts, "sglext": {"routed_experts": payload}})
        else:
            choice = {"index": 0, "text": "...", "routed_experts": npy(dense.astype(np.uint8))}
            out.append({"id": f"cmpl-{request}", "choices": [choice], "usage": counts})
    return out


def write_responses(folder: Path, trace: Trace, **options) -> Path:
    path = folder / "responses.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in responses(trace, **options)))
    return path


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    header, data = {}, b""
    for name, array in tensors.items():
        raw = array.astype("<i8").tobytes()
        header[name] = {"dtype": "I64", "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_trtllm(folder: Path, trace: Trace, ranks: int = 2) -> Path:
    meta = {"num_experts": SPEC.experts, "num_experts_per_token": SPEC.top_k}
    (folder / "meta_info.json").write_text(json.dumps(meta))
    for rank in range(ranks):
        mine = trace.counts // ranks + (trace.counts % ranks > rank)
        tensors = {
            f"{step + 100}_{layer}": mine[step, i]
            for step in range(trace.steps)
            for i, layer in enumerate(SPEC.layer_ids)
        }
        (folder / f"rank{rank}.safetensors").write_bytes(safetensors(tensors))
    return folder / "meta_info.json"


def write_megatron(folder: Path, trace: Trace, ranks: int = 1, first: int = 1) -> Path:
    """Every rank writes the tokens of the steps it has, layer by layer; layers count from ``first``."""
    for rank in range(ranks):
        lines = []
        for step in trace.step_ids:
            rows = np.flatnonzero(trace.step == step)
            mine = rows[len(rows) * rank // ranks : len(rows) * (rank + 1) // ranks]
            for i, layer in enumerate(SPEC.layer_ids):
                # two micro-batches
                for part in np.array_split(mine, 2):
                    line = {"step": int(step), "stage": "pre_dispatch", "block": "decoder", "layer": layer + first}
                    line |= {"rank": rank, "num_tokens": len(part), "topk": SPEC.top_k}
                    lines.append(line | {"top_indices": trace.routes[part, i].tolist()})
            lines.append({"step": int(step), "block": "mtp", "mtp_idx": 0, "layer": 1, "rank": rank, "top_indices": []})
        path = folder / f"router_trace_rank{rank}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "router_trace_rank0.jsonl"


def selection(trace: Trace, request: int) -> list[dict]:
    rows = np.flatnonzero(trace.request == request)
    prompt = [row for row in rows if trace.phase[row] == 0]
    steps = []
    for block in [prompt, *([row] for row in rows[len(prompt) :])]:
        step: dict[str, object] = {str(layer): None for layer in range(HIDDEN)}
        step |= {str(layer): trace.routes[block, i].tolist() for i, layer in enumerate(SPEC.layer_ids)}
        steps.append(step)
    return steps


def write_selection(folder: Path, trace: Trace) -> Path:
    """A folder of subjects with a file a request; the path returned is that of the first request."""
    for request in np.unique(trace.request):
        subject = folder / ("law" if request % 2 else "physics")
        subject.mkdir(exist_ok=True)
        (subject / f"{request}.json").write_text(json.dumps(selection(trace, int(request))))
    return folder / "physics" / "0.json"


def write_flame(folder: Path, trace: Trace, weights: np.ndarray, iteration: int = 500) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = folder / "actives" / f"iter_{iteration}"
    place.mkdir(parents=True)
    for i, layer in enumerate(SPEC.layer_ids):
        table = pa.table(
            {
                "scores": pa.array(weights[:, i].astype(np.float16).tolist(), pa.list_(pa.float16())),
                "indices": pa.array(trace.routes[:, i].tolist(), pa.list_(pa.int16())),
            }
        )
        pq.write_table(table, place / f"layer_{layer:02d}.parquet")
    return folder


def write_lines(folder: Path, trace: Trace, weights: np.ndarray | None = None) -> Path:
    path = folder / "picks.jsonl"
    lines = []
    for row in range(trace.tokens):
        for i, layer in enumerate(SPEC.layer_ids):
            line = {"req_id": f"r{trace.request[row]}", "token_idx": int(trace.position[row]), "layer": layer}
            line["topk_ids"] = trace.routes[row, i].tolist()
            if weights is not None:
                line["topk_weights"] = weights[row, i].tolist()
            lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines))
    return path


def write_loads(folder: Path, trace: Trace) -> Path:
    path = folder / "loads.npy"
    np.save(path, trace.loads)
    return path


SAMPLES = {
    "eplb-loads": write_loads,
    "sglang-stat": write_stat,
    "sglang-token": write_tokens,
    "sglang-pass": write_passes,
    "routed-experts": write_responses,
    "trtllm-stats": write_trtllm,
    "megatron": write_megatron,
    "expert-selection": write_selection,
    "flame": lambda folder, trace: write_flame(folder, trace, np.ones(trace.routes.shape)),
    "jsonl": write_lines,
}
"""By format: write a file of it to a folder and return the path to read."""
COUNTED = ("eplb-loads", "sglang-stat", "sglang-pass", "trtllm-stats")
"""Formats that hold counts only."""
